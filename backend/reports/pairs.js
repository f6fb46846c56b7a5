const boxes = [...document.querySelectorAll("[data-pair]")], counter = document.querySelector("output");
const ids = (struck) => boxes.filter((box) => box.checked === struck).map((box) => box.dataset.pair);
let saved = true;
function count() {
  counter.textContent = `${ids(true).length} of ${boxes.length} struck` + (saved ? "" : ", not saved yet");
}
for (const box of boxes) box.addEventListener("change", () => { saved = false; count(); });
document.querySelector("button").addEventListener("click", () => {
  const text = JSON.stringify({ format: 1, struck: ids(true), kept: ids(false) }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = "strikes.json";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  saved = true;
  count();
});
addEventListener("beforeunload", (event) => { if (!saved) event.preventDefault(); });
count();
