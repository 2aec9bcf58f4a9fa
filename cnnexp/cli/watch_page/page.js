// Asks for the state of the sweep again and again, and shows it. Text is never parsed as HTML.
"use strict";
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 320, HEIGHT = 150, LEFT = 44, RIGHT = 8, TOP = 8, BOTTOM = 18;
const element = id => document.getElementById(id);
const shown = {};  // the state of each part of the page, as text
let lastAnswer = null;

function make(name, text, attributes = {}) {
  const node = document.createElement(name);
  if (text !== undefined) node.textContent = text;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

function draw(name, attributes, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function write(id, text) {
  if (element(id).textContent !== text) element(id).textContent = text;  // else screen readers read it again
}

function change(part, value, show) {
  const text = JSON.stringify(value);
  if (shown[part] === text) return;
  shown[part] = text;
  show(value);
}

function showTable({ columns, rows, text }) {
  write("cells-text", text);
  const head = make("thead"), body = make("tbody"), titles = make("tr");
  for (const column of columns) titles.append(make("th", column, { scope: "col" }));
  head.append(titles);
  for (const row of rows) {
    const line = make("tr");
    row.forEach((value, column) => line.append(column ? make("td", value) : make("th", value, { scope: "row" })));
    body.append(line);
  }
  element("cells").replaceChildren(...(columns.length ? [head, body] : []));
}

function showCurves({ panels, scale, text }) {
  write("curves-text", text);
  const range = scale.high - scale.low || 1, steps = scale.last_step || 1;
  const x = step => LEFT + step / steps * (WIDTH - LEFT - RIGHT);
  const y = value => TOP + (scale.high - value) / range * (HEIGHT - TOP - BOTTOM);
  const line = (points, index) => points.map(p => `${x(p[0]).toFixed(1)},${y(p[index]).toFixed(1)}`);
  const others = panels.map(panel => line(panel.points, 1).join(" "));
  element("curves").replaceChildren(...panels.map((panel, number) => {
    const figure = make("figure", undefined, panel.running ? { class: "running" } : {});
    const caption = make("figcaption", panel.cell);
    caption.append(make("span", panel.text));
    const picture = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": panel.label });
    others.forEach((points, other) => {
      if (other !== number) picture.append(draw("polyline", { class: "other", points }));
    });
    const outline = [...line(panel.points, 3), ...line(panel.points, 2).reverse()].join(" ");
    const bottom = HEIGHT - BOTTOM;
    picture.append(
      draw("polygon", { class: "band", points: outline }),
      draw("polyline", { class: "axis", points: `${LEFT},${TOP} ${LEFT},${bottom} ${WIDTH - RIGHT},${bottom}` }),
      draw("polyline", { class: "mean", points: others[number] }),
      draw("text", { x: LEFT - 5, y: TOP + 8, "text-anchor": "end" }, scale.high_text),
      draw("text", { x: LEFT - 5, y: bottom, "text-anchor": "end" }, scale.low_text),
      draw("text", { x: LEFT, y: HEIGHT - 4 }, "step 0"),
      draw("text", { x: WIDTH - RIGHT, y: HEIGHT - 4, "text-anchor": "end" }, scale.last_step.toLocaleString("en")),
    );
    const last = panel.points.at(-1);
    if (last) picture.append(draw("circle", { class: "last", cx: x(last[0]), cy: y(last[1]), r: 3 }));
    figure.append(caption, picture);
    return figure;
  }));
}

function showNotes(notes) {
  element("notes").hidden = !notes.length;
  element("notes").replaceChildren(...notes.map(note => make("li", note)));
}

function show(state) {
  document.title = `${state.done} of ${state.total}: ${state.name}`;
  write("name", state.name);
  write("state", state.state);
  write("counts", state.counts);
  element("bar").max = Math.max(1, state.total);
  element("bar").value = state.done;
  write("times", `${state.times}. Last updated at ${lastAnswer.toLocaleTimeString()}.`);
  change("notes", state.notes, showNotes);
  change("cells", state.cells, showTable);
  change("curves", state.curves, showCurves);
}

async function poll() {
  let seconds = 2;
  try {
    const answer = await fetch("state.json", { cache: "no-store" });
    const state = await answer.json();
    if (!answer.ok) throw new Error(state.error);
    lastAnswer = new Date();
    seconds = state.every;
    element("connection").hidden = true;
    show(state);
  } catch (error) {
    const since = lastAnswer ? ` since ${lastAnswer.toLocaleTimeString()}` : "";
    write("connection", `No answer from cnnexp watch${since}: ${error.message}. What is shown may be old. Trying again …`);
    element("connection").hidden = false;
  }
  setTimeout(poll, 1000 * seconds);
}

poll();
