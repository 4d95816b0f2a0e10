"""The report in headless Chromium: light and dark, narrow and wide, its rows turned over and searched, offline."""

import asyncio
import json
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from generation.report.command import write_report
from generation.transfer.rows import one_thread_an_operation
from tests.browser import CHROMIUM, Tab, chromium
from tests.conftest import manifest, rows
from tests.report_pages import HOSTILE, rewrite

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine; Debian's is `apt-get install -y chromium`"
)
SIZES = ((360, "light"), (360, "dark"), (1440, "light"), (1440, "dark"))
# The smallest contrast of any visible text in the page with the nearest background behind it, and that text.
CONTRAST = """(() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => parts(colour).slice(0, 3)
    .map((c) => c / 255).map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (parts(colour)[3] !== 0) return colour; } return "rgb(255, 255, 255)"; };
  let worst = [99, ""];
  for (const e of document.querySelectorAll("body *")) {
    const text = [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data).join("").trim();
    if (!text || !e.getClientRects().length || e.disabled) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(e.closest("svg") ? style.fill : style.color), light(behind(e))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < worst[0]) worst = [contrast, text];
  }
  return worst;
})()"""
# Elements that hold the page open to the right, those inside a part that scrolls by itself left out.
WIDE = """[...document.querySelectorAll("body *")].filter((e) => !e.parentElement.closest(".scroll, details, svg"))
  .filter((e) => e.getBoundingClientRect().right > innerWidth + 0.5).map((e) => e.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def page(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with one_thread_an_operation():
        yield write_report(finished_run, tmp_path_factory.mktemp("report"))[0]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 110))


def sound(tab: Tab, path: Path) -> None:
    """Asserts that the page asked for nothing but itself and complained of nothing."""
    assert {url.partition("#")[0] for url in tab.requests} == {path.resolve().as_uri()}
    assert tab.complaints == []


def test_light_and_dark_narrow_and_wide(page: Path) -> None:
    async def look() -> None:
        async with chromium() as tab:
            papers = {}
            for width, scheme in SIZES:
                await tab.open(page, width, scheme)
                assert await tab.value("document.documentElement.scrollWidth") == width
                assert await tab.value(WIDE) == []
                contrast, text = await tab.value(CONTRAST)
                assert contrast >= 4.5, (width, scheme, text)
                assert await tab.value("[...document.querySelectorAll('svg')].every((e) => e.clientWidth > 250)")
                papers[width, scheme] = await tab.value("getComputedStyle(document.body).backgroundColor")
            assert len(set(papers.values())) == 2
            sound(tab, page)

    run(look())


def test_rows_are_turned_over_searched_and_linked(page: Path, finished_run: Path) -> None:
    captions = rows(finished_run, "captions")

    async def look() -> None:
        async with chromium() as tab:
            await tab.open(page, 1440, "light")

            async def shown() -> tuple[str, str]:
                found = await tab.value("[place.textContent, document.getElementById('row').innerText]")
                return found[0], found[1]

            async def search(text: str) -> None:
                event = "search.dispatchEvent(new Event('input'))"
                await tab.value(f"search.value = {json.dumps(text)}; {event}")

            place, text = await shown()
            assert place == f"1 of {len(captions)}"
            assert captions[0]["caption"] in text
            assert captions[0]["seed"] in text
            assert await tab.value("previous.disabled && !next.disabled")
            await tab.value("next.click()")
            assert captions[1]["caption"] in (await shown())[1]
            await tab.value("previous.click()")
            assert captions[0]["caption"] in (await shown())[1]
            await search(captions[7]["seed"].upper())
            place, text = await shown()
            assert captions[7]["caption"] in text
            await search("no row holds this")
            assert (await shown()) == ("none found", "")
            await search("")
            own = await tab.value("document.querySelector('#row a').textContent")
            await tab.value("document.querySelector('#row a').click()")
            await tab.value("new Promise((done) => setTimeout(done, 200))")
            assert (await shown())[1].startswith(f"{own}, from ")
            sound(tab, page)

    run(look())


def test_hostile_text_runs_nothing(run_copy: Path) -> None:
    for column in ("caption", "seed", "source"):
        rewrite(run_copy, "captions", column, HOSTILE)
    content = manifest(run_copy)
    content["stages"]["seeds"]["sources"] = {HOSTILE: {"license": HOSTILE}}
    (run_copy / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    with one_thread_an_operation():
        path = write_report(run_copy)[0]

    async def look() -> None:
        async with chromium() as tab:
            await tab.open(path, 360, "dark")
            assert HOSTILE.replace("\u2028", "") in str(
                await tab.value("document.getElementById('row').textContent")
            ).replace("\u2028", "")
            assert await tab.value("document.querySelectorAll('img').length") == 0
            assert await tab.value("document.documentElement.scrollWidth") == 360
            blocked = "document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 1'}))"
            sound(tab, path)
            await tab.value(blocked)
            assert await tab.value("window.ran === undefined")

    run(look())


def test_the_address_names_a_row(page: Path, finished_run: Path) -> None:
    row = rows(finished_run, "captions")[5]

    async def look() -> None:
        async with chromium() as tab:
            await tab.open(page, 1440, "light", f"#row-{row['id']}")
            assert row["caption"] in await tab.value("document.getElementById('row').innerText")

    run(look())
