const statusLine = document.getElementById("status");
const result = document.getElementById("result");
const here = location.origin + location.pathname;

for (const code of document.querySelectorAll("code")) code.textContent = code.textContent.replace("URL", here);

async function predict(file) {
  if (!file) return;
  statusLine.textContent = "…";
  try {
    const reply = await fetch("?overlay=1", { method: "POST", body: file });
    result.hidden = !reply.ok;
    if (!reply.ok) {
      statusLine.textContent = (await reply.json()).error;
      return;
    }
    const parts = [...reply.headers.get("Server-Timing").matchAll(/(\w+);dur=([0-9.]+)/g)].filter(([, name]) => name !== "wait");
    const milliseconds = Math.round(parts.reduce((sum, [, , duration]) => sum + +duration, 0));
    const classes = reply.headers.get("X-Classes").split(",").map(decodeURIComponent).join(", ");
    result.src = URL.createObjectURL(await reply.blob());
    statusLine.textContent = `${classes}: ${milliseconds} ms`;
  } catch (error) {
    statusLine.textContent = `no answer: ${error.message}`;
  }
}

document.getElementById("file").addEventListener("change", event => predict(event.target.files[0]));
addEventListener("dragover", event => event.preventDefault());
addEventListener("drop", event => {
  event.preventDefault();
  predict(event.dataTransfer.files[0]);
});
