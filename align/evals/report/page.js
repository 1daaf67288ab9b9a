"use strict";
const filter = document.getElementById("filter");
const buttons = [...document.querySelectorAll("#filter button")];
const shown = document.getElementById("shown");

function show(flag) {
  let total = 0;
  for (const benchmark of document.querySelectorAll("details.benchmark")) {
    let count = 0;
    for (const sample of benchmark.querySelectorAll("article")) {
      sample.hidden = flag !== "all" && !sample.dataset.flags.split(" ").includes(flag);
      count += !sample.hidden;
    }
    benchmark.querySelector(".count").textContent = count;
    benchmark.classList.toggle("empty", count === 0);
    // a filter is a question to all benchmarks: what it finds is to be seen without opening each
    if (flag !== "all") benchmark.open = count > 0;
    total += count;
  }
  for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.show === flag);
  shown.textContent = `${total} ${total === 1 ? "sample" : "samples"}`;
}

for (const button of buttons) button.addEventListener("click", () => show(button.dataset.show));
if (filter) {
  filter.hidden = false;
  show("all");
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details.numbers")) details.open = true;
});
