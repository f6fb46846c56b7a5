for (const button of document.querySelectorAll(".again button")) {
  button.addEventListener("click", async () => {
    const code = button.previousElementSibling;
    try { await navigator.clipboard.writeText(code.textContent); button.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(code); button.textContent = "Selected"; }
    setTimeout(() => (button.textContent = "Copy"), 1600);
  });
}
for (const picture of document.images) {
  const missing = () => {
    const words = Object.assign(document.createElement("div"), { className: "missing", textContent: "picture moved away" });
    picture.replaceWith(words);
  };
  if (picture.complete && !picture.naturalWidth) missing();
  picture.addEventListener("error", missing);
}
