/* A click on a picture of a page shows it as large as the window; another click, or Escape, puts it back. */
document.addEventListener("DOMContentLoaded", () => {
  const close = () => document.querySelectorAll(".enlarged").forEach((image) => image.classList.remove("enlarged"));
  document.addEventListener("click", (event) => {
    const image = event.target.closest(".bd-article img");
    const open = image && !image.classList.contains("enlarged");
    close();
    if (open) image.classList.add("enlarged");
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && close());
});
