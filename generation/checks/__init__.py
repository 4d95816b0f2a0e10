"""What makes an answer acceptable: pure functions that return a reason code, or the accepted content. Rules see the
form, invented facts and changed attributes; whether an answer is true is for the judge."""
