// Light or dark: as the system says, until somebody chooses. No module, so that it runs before anything is painted.
"use strict";

{
  const KEY = "warmstart.theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (localStorage.getItem(KEY) ?? (system.matches ? "dark" : "light")) === "dark";

  const apply = () => {
    document.documentElement.dataset.theme = dark() ? "dark" : "light";
    const toggle = document.getElementById("theme");
    if (toggle) {
      toggle.textContent = dark() ? "Light" : "Dark";
      toggle.setAttribute("aria-label", `${dark() ? "Light" : "Dark"} colours`);
    }
    document.dispatchEvent(new Event("theme"));
  };

  apply();
  system.addEventListener("change", apply);
  document.addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme").addEventListener("click", () => {
      localStorage.setItem(KEY, dark() ? "light" : "dark");
      apply();
    });
  });
}
