// Follows a running job: the counts and the bar as they change; what else changed is one click away.
"use strict";
const job = document.getElementById("job").dataset.job;
const names = ["completed", "failed", "timed_out", "cancelled"];
const numbers = new Intl.NumberFormat("en");
const source = new EventSource(`/v1/jobs/${encodeURIComponent(job)}/events`);
const began = document.getElementById("ended").textContent;

function show(progress) {
  const ended = names.reduce((sum, name) => sum + progress.counts[name], 0);
  const whole = Math.max(progress.executions || 0, ended, 1);
  document.getElementById("ended").textContent = numbers.format(ended);
  const bar = document.querySelector("#bar svg");
  bar.querySelectorAll("rect:not(.rest)").forEach((part) => part.remove());
  let x = 0;
  for (const name of names) {
    document.getElementById(`count-${name}`).textContent = numbers.format(progress.counts[name]);
    const part = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const width = (1000 * progress.counts[name]) / whole;
    part.setAttribute("class", name);
    part.setAttribute("x", String(x));
    part.setAttribute("width", String(width));
    part.setAttribute("height", "10");
    bar.append(part);
    x += width;
  }
  const status = document.querySelector("#status .status");
  status.className = `status ${progress.status}`;
  status.textContent = progress.status;
  document.getElementById("news").hidden = document.getElementById("ended").textContent === began;
}

source.addEventListener("progress", (event) => show(JSON.parse(event.data)));
source.addEventListener("done", () => {
  source.close();
  location.reload();
});
