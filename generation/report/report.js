"use strict";
(() => {
  const rows = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("browser");
  if (!form) return;
  const [search, previous, next, place, shown] = ["search", "previous", "next", "place", "row"].map((id) =>
    document.getElementById(id)
  );
  const texts = rows.map((row) =>
    [row.id, row.seed, row.source, row.caption, ...row.conversations.flatMap((one) => one.turns.map((turn) => turn.value))]
      .join("\n")
      .toLowerCase()
  );
  let found = [...rows.keys()];
  let at = 0;

  // What a model wrote goes into the page as text, never as markup.
  const add = (parent, tag, text, kind) => {
    const element = parent.appendChild(document.createElement(tag));
    element.textContent = text ?? "";
    if (kind) element.className = kind;
    return element;
  };

  const show = () => {
    shown.replaceChildren();
    place.textContent = found.length ? `${at + 1} of ${found.length}` : "none found";
    previous.disabled = at <= 0;
    next.disabled = at >= found.length - 1;
    if (!found.length) return;
    const row = rows[found[at]];
    add(shown, "p", `${row.id}, from ${row.source}`, "meta");
    add(shown, "h3", "Seed");
    add(shown, "p", row.seed, "seed");
    if (row.caption) {
      add(shown, "h3", "Caption");
      add(shown, "p", row.caption);
      add(shown, "p", [row.model, row.prompt].filter(Boolean).join(", prompt "), "meta");
    }
    for (const one of row.conversations) {
      add(shown, "h3", `Conversation: ${one.task.replaceAll("_", " ")}`);
      for (const turn of one.turns) add(shown, "p", turn.value, turn.from === "gpt" ? "gpt" : "human");
    }
    if (row.neighbours.length) add(shown, "h3", "Neighbours, by the cosine of their text embeddings");
    for (const near of row.neighbours) {
      const line = add(shown, "div", "", "near");
      add(line, "span", near.cosine.toFixed(3), "meta");
      const own = rows.findIndex((other) => other.id === near.id);
      const head = add(line, own < 0 ? "span" : "a", near.id);
      if (own >= 0) head.href = `#row-${near.id}`;
      add(line, "span", "");
      add(line, "span", near.caption);
    }
  };

  const narrow = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    found = [...rows.keys()].filter((number) => words.every((word) => texts[number].includes(word)));
    at = 0;
    show();
  };

  const turn = (step) => {
    at = Math.min(Math.max(at + step, 0), Math.max(found.length - 1, 0));
    show();
  };

  const follow = () => {
    const number = rows.findIndex((row) => location.hash === `#row-${row.id}`);
    if (number < 0) return;
    search.value = "";
    found = [...rows.keys()];
    at = number;
    show();
    shown.scrollIntoView();
  };

  search.addEventListener("input", narrow);
  form.addEventListener("submit", (event) => event.preventDefault());
  previous.addEventListener("click", () => turn(-1));
  next.addEventListener("click", () => turn(1));
  addEventListener("hashchange", follow);
  form.hidden = false;
  show();
  follow();
})();
