"""The live page: one document of markup, style and script, without any outside resource; everything it shows comes from /status.

Promise: two seconds suffice to see whether the service is well, what it does and what it costs; texts from the service are only ever
set as text, so nothing in a name or a reason can run. Price: one request a second while somebody looks.
"""

__all__ = ["PAGE"]

PAGE = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Sterna</title>
<link rel="icon" href="data:,">
<style>
:root { --ink: #17212b; --soft: #5f6f7e; --line: #dfe5ea; --paper: #ffffff; --back: #f3f6f8; --track: #e9eef2;
  --spot: #0f9d8a; --fixed: #3b6fd4; --warn: #c96a00; --bad: #cc3344; --good: #1c8a4d; --shade: 0 1px 2px rgb(20 40 60 / 7%); }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #8fa1b3; --line: #26323d; --paper: #141c24; --back: #0c1218;
  --track: #22303b; --spot: #2cc5ae; --fixed: #6f9bf5; --warn: #f0a040; --bad: #ff6b78; --good: #4cc684; --shade: none; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 14px/1.45 system-ui, -apple-system, "Segoe UI", sans-serif;
  font-variant-numeric: tabular-nums; }
main { max-width: 1400px; margin: 0 auto; padding: 18px 20px 40px; }
header { display: flex; flex-wrap: wrap; align-items: center; gap: 8px 12px; margin-bottom: 16px; }
header svg { width: 34px; height: 26px; color: var(--spot); flex: none; }
h1 { font-size: 20px; margin: 0; letter-spacing: -0.01em; } h1 span { color: var(--soft); font-weight: 400; }
h2 { font-size: 13px; margin: 0 0 10px; font-weight: 600; display: flex; gap: 8px; align-items: baseline; }
h2 small { color: var(--soft); font-weight: 400; font-size: 12px; }
.push { flex: 1; } .soft { color: var(--soft); }
.pill { border-radius: 999px; padding: 2px 11px; font-weight: 600; font-size: 13px; color: var(--paper); background: var(--soft); }
.pill.good { background: var(--good); } .pill.warn { background: var(--warn); } .pill.bad { background: var(--bad); }
.chip { border: 1px solid var(--line); border-radius: 999px; padding: 1px 9px; font-size: 12px; color: var(--soft); white-space: nowrap; }
.chip.me { color: var(--ink); border-color: currentColor; }
.chip.spot { color: var(--spot); border-color: currentColor; } .chip.on-demand { color: var(--fixed); border-color: currentColor; }
.chip.drain { color: var(--paper); background: var(--warn); border-color: var(--warn); font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px; margin-bottom: 12px; }
.columns { display: grid; grid-template-columns: minmax(300px, 5fr) minmax(380px, 8fr); gap: 12px; align-items: start; }
.columns > div { display: grid; grid-template-columns: minmax(0, 1fr); gap: 12px; min-width: 0; }
@media (max-width: 860px) { .columns { grid-template-columns: minmax(0, 1fr); } }
section, .tile { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px;
  box-shadow: var(--shade); }
.tile { position: relative; overflow: hidden; min-height: 96px; }
.tile b { display: block; font-size: 30px; line-height: 1.15; letter-spacing: -0.02em; font-weight: 650; }
.tile .of { color: var(--soft); font-size: 12px; } .tile label { color: var(--soft); font-size: 12px; }
.tile svg { position: absolute; right: 14px; top: 16px; width: 42%; height: 44px; color: var(--spot); }
.node { border: 1px solid var(--line); border-left: 4px solid var(--fixed); border-radius: 7px; padding: 8px 10px; margin-bottom: 8px; }
.node.spot { border-left-color: var(--spot); }
.node.draining { border-color: var(--warn); background: color-mix(in srgb, var(--warn) 9%, transparent); }
.node:last-child { margin-bottom: 0; }
.row { display: flex; flex-wrap: wrap; gap: 3px 8px; align-items: center; }
.row b { font-weight: 600; }
.rep { display: grid; grid-template-columns: 4.6em minmax(0, 1fr) auto; gap: 8px; align-items: center; margin-top: 6px; font-size: 12px; }
.bar { height: 8px; border-radius: 4px; background: var(--track); overflow: hidden; display: flex; }
.bar i { display: block; height: 100%; background: var(--fixed); } .bar i.spot { background: var(--spot); }
.bar i.full { background: var(--warn); }
code { font: 12px ui-monospace, SFMono-Regular, Menlo, monospace; }
.lanes { display: grid; gap: 3px; }
.lane { display: grid; grid-template-columns: 5.2em minmax(0, 1fr) 4.6em; gap: 8px; align-items: center; }
.lane > span:last-child { text-align: right; font-size: 12px; color: var(--soft); }
.time { position: relative; height: 13px; background: var(--track); border-radius: 3px; overflow: hidden; }
.time i { position: absolute; top: 0; bottom: 0; min-width: 2px; border-radius: 2px; }
.time i.wait { opacity: .3; }
.time u { position: absolute; top: 0; bottom: 0; width: 3px; margin-left: -1px; background: var(--ink); }
.time u.crash { background: var(--bad); } .time u.recompute { background: var(--warn); }
.axis { display: flex; justify-content: space-between; color: var(--soft); font-size: 11px; margin: 4px 5.4em 0 6em; }
table { border-collapse: collapse; width: 100%; font-size: 13px; } td, th { text-align: left; padding: 3px 8px 3px 0; vertical-align: top; }
th { color: var(--soft); font-weight: 400; font-size: 12px; } tr + tr td { border-top: 1px solid var(--line); }
td.num, th.num { text-align: right; } td.num, td code, .how { white-space: nowrap; } .scroll { overflow: auto; max-height: 260px; }
.how { font-weight: 600; } .how.kv { color: var(--good); } .how.recompute { color: var(--warn); } .how.crash { color: var(--bad); }
.none { color: var(--soft); font-size: 13px; }
#trouble { display: none; background: var(--bad); color: var(--paper); border-radius: 8px; padding: 8px 14px; margin-bottom: 12px; }
body.stale #trouble { display: block; } body.stale .tiles, body.stale .columns { opacity: .45; }
</style>
</head>
<body>
<main>
<header>
<svg viewBox="0 0 34 26" fill="currentColor" aria-hidden="true">
<path d="M0 3c8 1 13 4 16 9 4-5 10-9 18-11-5 4-8 8-10 13l6 3-9-1c-2 3-5 6-9 9 2-4 3-7 3-10C11 11 6 6 0 3z"/></svg>
<h1>Sterna <span id="model"></span></h1>
<span id="health" class="pill">…</span>
<span class="push"></span>
<span id="gateways" class="row"></span>
</header>
<div id="trouble" role="alert"></div>
<div class="tiles" id="tiles"></div>
<div class="columns">
<div>
<section><h2>Machines <small id="machines-note"></small></h2><div id="machines"></div></section>
<section><h2>Cost <small id="cost-note"></small></h2><div id="cost"></div></section>
</div>
<div>
<section><h2>Streams <small id="streams-note"></small></h2><div id="streams"></div></section>
<section><h2>Moves <small>streams that went on at another replica</small></h2><div id="moves" class="scroll"></div></section>
<section><h2>Decisions <small>of the scaling and placement policies</small></h2><div id="decisions" class="scroll"></div></section>
</div>
</div>
</main>
<script>
"use strict";
const WINDOW_S = 60, HOW = {kv: "with KV", recompute: "recomputed", crash: "after a crash"};
const SHADES = {spot: ["#0f9d8a", "#63b53c", "#18a9c4", "#a3a316", "#2f7f5f"], "on-demand": ["#3b6fd4", "#8a63d2", "#5a8fb8", "#b05fb5"]};
const history = [];
const $ = (id) => document.getElementById(id);
const count = (n) => n == null ? "–" : Math.round(n).toLocaleString("en");
const short = (id) => {
  const [, name, choice] = /^(?:[a-z]+-)?(.*?)(-\d+)?$/.exec(String(id));
  return name.slice(0, 6) + (choice && choice !== "-0" ? choice : "");
};
const money = (n, digits) => "$" + n.toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits});
const cents = (n) => n == null ? "–" : money(n, n < 0.1 ? 4 : n < 10 ? 3 : 2);
const span = (s) => s == null ? "" : s < 90 ? Math.round(s) + " s" : s < 5400 ? Math.round(s / 60) + " min" : s < 172800 ?
  (s / 3600).toFixed(1) + " h" : Math.round(s / 86400) + " days";
const gap = (s) => s == null ? "–" : s < 1 ? Math.round(s * 1000) + " ms" : s.toFixed(1) + " s";
const plural = (n, one) => count(n) + " " + one + (n === 1 ? "" : "s");

function h(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {}))
    if (name === "style") Object.assign(made.style, value); else if (value != null) made.setAttribute(name, value);
  made.append(...children.filter((child) => child != null));
  return made;
}
const fill = (id, ...children) => $(id).replaceChildren(...children);

function spark(values) {
  const ns = "http://www.w3.org/2000/svg", svg = document.createElementNS(ns, "svg"), line = document.createElementNS(ns, "path");
  const top = Math.max(1, ...values), step = 100 / Math.max(1, values.length - 1);
  const points = values.map((v, n) => (n * step).toFixed(1) + " " + (38 - 36 * v / top).toFixed(1));
  svg.setAttribute("viewBox", "0 0 100 40"); svg.setAttribute("preserveAspectRatio", "none");
  line.setAttribute("d", points.length > 1 ? "M0 40 L" + points.join(" L") + " L100 40 Z" : "");
  line.setAttribute("fill", "currentColor"); line.setAttribute("opacity", "0.35");
  svg.append(line);
  return svg;
}
const tile = (label, value, note, extra) =>
  h("div", {class: "tile"}, h("label", {}, label), h("b", {}, value), h("span", {class: "of"}, note), extra);

function rate(now) {
  history.push([now.now_s, now.totals.tokens]);
  while (history.length > 62) history.shift();
  const rates = [];
  for (let n = 1; n < history.length; n++) {
    const [from, before] = history[n - 1], [to, after] = history[n];
    rates.push(Math.max(0, after - before) / Math.max(0.001, to - from));
  }
  const last = rates.slice(-3);
  return [last.length ? last.reduce((a, b) => a + b) / last.length : null, rates];
}

function health(now) {
  const usable = now.replicas.filter((replica) => !replica.draining).length, draining = now.nodes.filter((node) => node.draining).length;
  const [word, kind] = !usable ? ["no replica takes streams", "bad"] : draining ? [plural(draining, "machine") + " leaving", "warn"] :
    ["serving", "good"];
  $("health").textContent = word; $("health").className = "pill " + kind;
  document.title = word === "serving" ? "Sterna · " + now.model : word + " · Sterna";
}

function tiles(now) {
  const t = now.totals, [perSecond, rates] = rate(now), moved = t.moves.kv + t.moves.recompute + t.moves.crash, cost = now.costs;
  const by = (market) => now.replicas.filter((replica) => (replica.market || "on-demand") === market && !replica.draining).length;
  const leaving = now.replicas.filter((replica) => replica.draining).length;
  const waits = [t.waiting ? count(t.waiting) + " wait for a first token" : "", t.paused ? count(t.paused) + " between machines" : ""];
  const share = cost && cost.on_demand_dollars ? cost.dollars / cost.on_demand_dollars : null;
  fill("tiles",
    tile("tokens per second", count(perSecond), count(t.tokens) + " in all", spark(rates)),
    tile("streams", count(t.live), waits.filter(Boolean).join(" · ") || "none waits", null),
    tile("replicas", count(by("spot") + by("on-demand")), count(by("spot")) + " spot · " + count(by("on-demand")) + " on demand" +
      (leaving ? " · " + count(leaving) + " leaving" : ""), null),
    tile("moved streams", count(moved), Object.entries(HOW).map(([how, words]) => count(t.moves[how]) + " " + words).join(" · "), null),
    tile("per million tokens", cost ? cents(cost.dollars_per_million_tokens) : "–",
      share == null ? "no price for these machines" : share.toFixed(2) + " of all on demand", null));
}

function replicaRow(replica) {
  const most = Math.max(1, replica.slots || replica.streams);
  const kind = replica.streams > most ? "full" : replica.market === "spot" ? "spot" : "";
  const kv = replica.kv_used == null ? "" : " · KV " + Math.round(100 * replica.kv_used) + " %";
  return h("div", {class: "rep", title: replica.deployment || ""}, h("code", {}, short(replica.name)),
    h("div", {class: "bar"}, h("i", {class: kind, style: {width: Math.min(100, 100 * replica.streams / most) + "%"}})),
    h("span", {class: "soft"}, count(replica.streams) + " of " + count(most) + kv));
}

function machineCard(now, node) {
  const own = now.replicas.filter((replica) => replica.node === node.id), market = node.market || "on-demand";
  const left = node.deadline_s == null ? "leaving" : "leaves in " + span(Math.max(0, node.deadline_s - now.now_s));
  const name = node.type && node.type !== "any" ? node.type : node.address || short(node.id);
  return h("div", {class: "node " + market + (node.draining ? " draining" : "")},
    h("div", {class: "row"}, h("b", {}, name), h("code", {class: "soft"}, short(node.id)), h("span", {class: "chip " + market}, market),
      node.head ? h("span", {class: "chip"}, "head") : null, node.gateway ? h("span", {class: "chip"}, "gateway") : null,
      node.draining ? h("span", {class: "chip drain"}, left) : null, h("span", {class: "push"}),
      h("span", {class: "soft"}, [node.zone && node.zone !== "any" ? node.zone : "", node.price_per_hour == null ? "" :
        cents(node.price_per_hour) + "/h", node.since_s == null ? "" : span(now.now_s - node.since_s)].filter(Boolean).join(" · "))),
    ...own.map(replicaRow));
}

function machines(now) {
  $("machines-note").textContent = ["spot", "on-demand"].map((market) =>
    count(now.nodes.filter((node) => (node.market || "on-demand") === market).length) + " " + market.replace("-", " ")).join(" · ");
  fill("machines", ...now.nodes.map((node) => machineCard(now, node)));
}

function shade(now, id) {
  const node = now.nodes.find((each) => each.id === id), market = node && node.market === "spot" ? "spot" : "on-demand";
  const alike = now.nodes.filter((each) => (each.market === "spot" ? "spot" : "on-demand") === market).map((each) => each.id);
  const place = alike.indexOf(id);
  return place < 0 ? "#8896a5" : SHADES[market][place % SHADES[market].length];
}

function lane(now, stream) {
  const at = (s) => 100 * Math.min(1, Math.max(0, 1 - (now.now_s - s) / WINDOW_S)), time = h("div", {class: "time"});
  stream.stays.forEach((stay, n) => {
    const end = stay.end_s == null ? now.now_s : stay.end_s, from = at(stay.first_s == null ? stay.start_s : stay.first_s), to = at(end);
    if (end < now.now_s - WINDOW_S) return;
    time.append(h("i", {class: stay.first_s == null ? "wait" : null,
      style: {left: from + "%", width: Math.max(0, to - from) + "%", background: shade(now, stay.node)},
      title: (stay.deployment || "") + " " + short(stay.replica) + ": " + plural(stay.tokens, "token")}));
    if (n && HOW[stay.how]) time.append(h("u", {class: stay.how, style: {left: from + "%"}, title: HOW[stay.how]}));
  });
  const state = stream.state === "running" ? count(stream.tokens) : stream.state === "paused" ? "moving…" : stream.state;
  return h("div", {class: "lane", title: stream.id}, h("code", {class: "soft"}, short(stream.id)), time, h("span", {}, state));
}

function streams(now) {
  const shown = now.streams.slice(0, 24);
  const some = shown.length < now.totals.live ? ", " + shown.length + " shown" : "";
  $("streams-note").textContent = plural(now.totals.live, "stream") + some + "; the last minute, coloured by machine; marks are moves";
  fill("streams", shown.length ? h("div", {class: "lanes"}, ...shown.map((stream) => lane(now, stream))) :
    h("div", {class: "none"}, "No stream now, and none that moved lately."),
    shown.length ? h("div", {class: "axis"}, h("span", {}, "60 s ago"), h("span", {}, "30 s"), h("span", {}, "now")) : "");
}

function table(id, heads, rows, nothing) {
  if (!rows.length) return fill(id, h("div", {class: "none"}, nothing));
  const cell = (tag, value, n) => h(tag, {class: heads[n].startsWith(">") ? "num" : null}, value);
  fill(id, h("table", {}, h("tr", {}, ...heads.map((head, n) => cell("th", head.replace(">", ""), n))),
    ...rows.map((row) => h("tr", {}, ...row.map((value, n) => cell("td", value, n))))));
}

function moves(now) {
  table("moves", [">ago", "stream", "from → to", "how", ">pause", "why"], now.moves.map((move) => [
    span(now.now_s - move.at_s), h("code", {}, short(move.stream)), h("code", {}, short(move.from) + " → " + short(move.to)),
    h("span", {class: "how " + move.how}, HOW[move.how]), gap(move.gap_s), h("span", {class: "soft"}, move.why || "")]),
    "No stream has moved yet.");
}

function cost(now) {
  const c = now.costs;
  if (!c) return fill("cost", h("div", {class: "none"}, "The books do not answer."));
  $("cost-note").textContent = "since " + new Date(1000 * c.since_s).toLocaleString("en", {dateStyle: "medium", timeStyle: "short"});
  const parts = c.by.filter((part) => part.dollars != null), whole = Math.max(c.on_demand_dollars || 0, c.dollars || 0);
  const bar = (...pieces) => h("div", {class: "bar", style: {height: "14px", margin: "3px 0 8px"}}, ...pieces);
  const piece = (value, market) => h("i", {class: market, style: {width: (whole ? 100 * value / whole : 0) + "%"}});
  const lines = parts.length ? [
    h("div", {class: "row"}, h("b", {}, cents(c.dollars)), h("span", {class: "soft"},
      "paid so far, " + cents(c.per_hour) + " an hour now")),
    bar(...parts.map((part) => piece(part.dollars, part.market))),
    h("div", {class: "row"}, h("b", {}, cents(c.on_demand_dollars)), h("span", {class: "soft"},
      "had all been on demand, " + cents(c.on_demand_per_hour) + " an hour now")),
    bar(piece(c.on_demand_dollars, "on-demand"))] : [];
  const unpriced = c.unpriced_hours < 0.001 ? "" :
    h("div", {class: "none"}, c.unpriced_hours.toFixed(2) + " machine-hours have no known price");
  fill("cost", ...lines, unpriced, h("div", {class: "none"}, "prices: " + c.prices));
}

function decisions(now) {
  table("decisions", [">ago", "decision", "reasons"], now.decisions.map((made) => [span(now.now_s - made.at_s), made.what,
    h("span", {class: "soft"}, made.reasons.join("; "))]), "None yet: the number of replicas is fixed, or nothing had to change.");
}

function show(now) {
  $("model").textContent = now.model;
  fill("gateways", ...now.gateways.map((gateway) => h("span", {class: "chip" + (gateway.name === now.gateway ? " me" : ""),
    title: gateway.name === now.gateway ? "this answer's gateway" : "another gateway"},
    "gateway " + short(gateway.name) + " · " + plural(gateway.live, "stream"))));
  health(now); tiles(now); machines(now); streams(now); moves(now); cost(now); decisions(now);
  document.body.classList.remove("stale");
}

let last = null;
async function look() {
  try {
    const answer = await fetch("status", {cache: "no-store", signal: AbortSignal.timeout(5000)});
    if (answer.status === 401) throw new Error("this gateway asks for an API key: reload the page and give it as the password");
    if (!answer.ok) throw new Error("the gateway answers with status " + answer.status);
    const now = await answer.json();
    show(now); last = Date.now();
  } catch (error) {
    const ago = last == null ? "" : "; what is shown is " + span((Date.now() - last) / 1000) + " old";
    $("trouble").textContent = "No news from the gateway (" + error.message + ")" + ago;
    document.body.classList.add("stale");
  }
  setTimeout(look, 1000);
}
document.addEventListener("visibilitychange", () => { history.length = 0; });
look();
</script>
</body>
</html>
"""
