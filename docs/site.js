// Wide tables scroll in a box, which the keyboard reaches only if it can have the focus.
document$.subscribe(() =>
  setTimeout(() => document.querySelectorAll(".md-typeset__scrollwrap").forEach((box) => (box.tabIndex = 0))),
);
