// Every instance with its video and its disk's figures, every core, and what is not well. All of it is asked of
// Prometheus, which serves this page; the videos come from the pods.
'use strict';

const EVERY = 2000; // between two looks at Prometheus, in ms
const KEPT = 150; // points of a line: five minutes
const HOUR = 3600; // of events, in s
const NOW = '{__name__=~"disk:.+|core:.+|up|disk_agent_(target_up|disk_state|disk_limit|role_threads)|video_connections"}';
const TIMES = '{__name__=~"disk_agent_target_start_time_seconds|video_start_time_seconds|video_disk_created_time_seconds"}';

const element = (id) => document.getElementById(id);
const make = (tag, text = '', more = {}) => Object.assign(document.createElement(tag), { textContent: text }, more);
const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
const byNumber = (a, b) => a.localeCompare(b, 'en', { numeric: true });
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString('en-GB');

const ask = async (path, query) => {
  const answer = await fetch(`../api/v1/${path}?${new URLSearchParams(query)}`);
  if (!answer.ok) throw new Error(`Prometheus answers ${answer.status}`);
  return (await answer.json()).data;
};

const short = (value, unit) => {
  if (value === undefined) return '–';
  const [scaled, prefix] = value >= 1e6 ? [value / 1e6, 'M'] : value >= 1e4 ? [value / 1e3, 'k'] : [value, ''];
  return `${scaled.toFixed(scaled >= 100 || scaled === 0 ? 0 : scaled < 1 ? 2 : 1)} ${prefix}${unit}`.trim();
};

// --- tiles -----------------------------------------------------------------------------------------------------------

// Of a tile: what is shown, how it comes from the series, and the names of the limits that bind it.
const FIGURES = [
  { name: 'IOPS', unit: '', colour: '#5aa9e6', of: (s) => sum(s['disk:read_requests:rate15s'], s['disk:write_requests:rate15s']), limits: { iops: 1 } },
  {
    name: 'MB/s', unit: '', colour: '#7fb069', of: (s) => sum(s['disk:read_bytes:rate15s'], s['disk:written_bytes:rate15s'], 1e-6),
    limits: { mibPerSecond: 1.048576, readMibPerSecond: 1.048576, writeMibPerSecond: 1.048576 },
  },
  { name: 'Latency', unit: 'ms', colour: '#ebcb8b', of: (s) => (s['disk:request_seconds:mean15s'] ?? NaN) * 1000, limits: {} },
];
const sum = (a, b, factor = 1) => (a === undefined && b === undefined ? undefined : ((a || 0) + (b || 0)) * factor);

const tiles = new Map(); // pod -> tile
const shown = new Set(); // tiles that are in view
const inView = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const tile = tiles.get(target.dataset.pod);
    if (!tile) continue;
    if (isIntersecting) shown.add(tile); else shown.delete(tile);
    if (isIntersecting) draw(tile);
    play(tile, isIntersecting);
  }
}, { rootMargin: '50px' });

const line = (box, colour) => new uPlot({
  width: Math.max(60, box.clientWidth), height: 34, legend: { show: false }, cursor: { show: false }, select: { show: false }, padding: [2, 0, 0, 0],
  scales: { x: { time: false }, y: { range: (_, low, high) => [0, Math.max(high || 0, 1)] } },
  axes: [{ show: false }, { show: false }],
  series: [{}, { stroke: colour, fill: `${colour}33`, width: 1.5, points: { show: false } }, { stroke: '#e5533d', width: 1, dash: [4, 4], points: { show: false } }],
}, [[], [], []], box);

const tileOf = (pod, page) => {
  const box = make('article');
  box.dataset.pod = pod;
  const video = make('video', '', { muted: true, playsInline: true, preload: 'none', controls: still });
  video.setAttribute('aria-label', `Video of ${pod}`);
  const head = make('header'), title = make('h3'), about = make('p');
  title.append(make('a', pod, { href: page }));
  head.append(title, about);
  const list = make('dl');
  const figures = FIGURES.map((figure) => {
    const cell = make('div'), value = make('dd', '–'), limit = make('small'), plot = make('div', '', { className: 'line' });
    cell.append(make('dt', figure.name), value, plot, limit);
    list.append(cell);
    return { ...figure, value, limit, plot, points: [], most: undefined };
  });
  box.append(video, head, list);
  const tile = { pod, page, box, video, about, figures, times: [], movies: null, at: 0, wanted: false, absent: 0 };
  const next = () => { tile.at += 1; start(tile); };
  video.addEventListener('ended', next);
  video.addEventListener('error', () => { if (tile.wanted && tile.movies?.length) setTimeout(next, 3000); });
  tiles.set(pod, tile);
  const after = [...tiles.keys()].sort(byNumber);
  element('tiles').insertBefore(box, tiles.get(after[after.indexOf(pod) + 1])?.box || null);
  inView.observe(box);
  return tile;
};

// Only tiles in view play: 128 videos at once are too many for a browser, and for the disks' figures.
const play = async (tile, wanted) => {
  tile.wanted = wanted;
  if (!wanted) {
    tile.video.pause();
    return;
  }
  if (!tile.movies) {
    try {
      const answer = await fetch(`${tile.page}playlist.json`);
      tile.movies = (await answer.json()).movies.filter((movie) => tile.video.canPlayType(movie.type));
    } catch {
      return; // the pod does not answer: the next look tries again
    }
  }
  if (tile.wanted) start(tile);
};
const start = (tile) => {
  const movie = tile.movies?.[tile.at % tile.movies.length];
  if (!movie) return;
  const url = new URL(movie.url, tile.page).href;
  if (tile.video.src !== url) {
    if (movie.thumbnail) tile.video.poster = new URL(movie.thumbnail, tile.page).href;
    tile.video.src = url;
  }
  if (!still && tile.wanted) tile.video.play().catch(() => { /* it was scrolled away meanwhile */ });
};

const draw = (tile) => {
  for (const figure of tile.figures) {
    figure.chart ??= line(figure.plot, figure.colour);
    figure.chart.setData([tile.times, figure.points, tile.times.map(() => figure.most ?? null)]);
  }
};

const push = (tile, time, values) => {
  tile.times.push(time);
  if (tile.times.length > KEPT) tile.times.shift();
  tile.figures.forEach((figure, i) => {
    const value = values[i];
    figure.points.push(Number.isFinite(value) ? value : null);
    if (figure.points.length > KEPT) figure.points.shift();
    figure.value.textContent = short(Number.isFinite(value) ? value : undefined, figure.unit);
  });
  if (shown.has(tile)) draw(tile);
};

// --- a look ----------------------------------------------------------------------------------------------------------

const grouped = (series) => {
  const found = { pods: new Map(), limits: new Map(), states: new Map(), cores: new Map(), roles: new Map(), viewers: new Map() };
  const at = (map, key, empty) => map.get(key) || map.set(key, empty).get(key);
  for (const { metric, value: [, text] } of series) {
    const name = metric.__name__, value = Number(text);
    if (name.startsWith('disk:')) at(found.pods, metric.pod, {})[name] = value;
    else if (name.startsWith('core:')) at(found.cores, metric.node, new Map()).set(metric.cpu, value);
    else if (name === 'up' && metric.job === 'video') Object.assign(at(found.pods, metric.pod, {}), { node: metric.node, page: `http://${metric.instance}/` });
    else if (name === 'disk_agent_disk_limit') at(found.limits, metric.disk, {})[metric.limit] = value;
    else if (name === 'disk_agent_disk_state' && value) found.states.set(metric.disk, metric.state);
    else if (name === 'disk_agent_role_threads') at(found.roles, metric.node, new Map()).set(metric.role, metric.cores);
    else if (name === 'video_connections') found.viewers.set(metric.pod, Math.max(0, value - 1)); // one is Prometheus
  }
  return found;
};

const numbers = (cores) => cores.split(',').filter(Boolean).flatMap((span) => {
  const [first, last = first] = span.split('-').map(Number);
  return Array.from({ length: last - first + 1 }, (_, i) => String(first + i));
});
const kindOf = (role) => (['target', 'emulator', 'system'].includes(role) ? role : 'vcpu');
const WORDS = { target: 'vhost target', vcpu: 'vCPUs', emulator: "QEMU's own threads", system: 'system' };

const bars = new Map(); // node -> cpu -> its bar
const showCores = ({ cores, roles }) => {
  for (const [node, busy] of [...cores].sort(([a], [b]) => byNumber(a, b))) {
    let host = bars.get(node);
    const plan = [...(roles.get(node) || new Map())].flatMap(([role, of]) => numbers(of).map((cpu) => [cpu, kindOf(role)]));
    const kinds = new Map(plan);
    if (!host || host.plan !== JSON.stringify(plan) || host.cpus.size !== busy.size) {
      host?.box.remove();
      const box = make('div'), list = make('ul');
      host = { box, cpus: new Map(), plan: JSON.stringify(plan) };
      for (const cpu of [...busy.keys()].sort(byNumber)) {
        const row = make('li', '', { className: kinds.get(cpu) || '' });
        const bar = make('i'), fill = make('b'), percent = make('span');
        bar.append(fill);
        row.append(make('span', cpu), bar, percent);
        list.append(row);
        host.cpus.set(cpu, { fill, percent });
      }
      box.append(make('h2', node), list);
      if (kinds.size) {
        const key = make('p', '', { className: 'key' });
        key.append(...[...new Set(kinds.values())].map((kind) => make('span', WORDS[kind], { className: kind })));
        box.append(key);
      }
      bars.set(node, host);
      element('hosts').append(box);
    }
    for (const [cpu, ratio] of busy) {
      const { fill, percent } = host.cpus.get(cpu);
      const part = Math.min(1, Math.max(0, ratio));
      fill.style.transform = `scaleX(${part})`;
      percent.textContent = `${Math.round(part * 100)} %`;
    }
  }
};

const disk = (pod) => `vhost.${pod.match(/\d+$/)?.[0]}`;
const IN_WORDS = { iops: 'IOPS', mibPerSecond: 'MiB/s', readMibPerSecond: 'MiB/s read', writeMibPerSecond: 'MiB/s written' };

const showTiles = ({ pods, limits, states, viewers }, time) => {
  for (const [pod, seen] of [...pods].filter(([, s]) => s.page).sort(([a], [b]) => byNumber(a, b))) {
    const tile = tiles.get(pod) || tileOf(pod, seen.page);
    tile.absent = 0;
    const state = states.get(disk(pod)), its = limits.get(disk(pod)) || {};
    const watching = viewers.get(pod);
    tile.about.textContent = [seen.node, disk(pod), state === 'plugged' ? '' : state, watching ? `${watching} connections` : ''].filter(Boolean).join(' · ');
    tile.box.classList.toggle('wrong', state !== 'plugged');
    for (const figure of tile.figures) {
      const binding = Object.entries(figure.limits).filter(([name]) => its[name]);
      figure.most = binding.length ? Math.min(...binding.map(([name, factor]) => its[name] * factor)) : undefined;
      figure.limit.textContent = binding.map(([name]) => `≤ ${its[name]} ${IN_WORDS[name]}`).join(', ');
    }
    push(tile, time, FIGURES.map((figure) => figure.of(seen)));
    if (shown.has(tile) && !tile.movies) play(tile, true);
  }
  for (const [pod, tile] of tiles) {
    if (pods.get(pod)?.page) continue;
    tile.about.textContent = 'its pod does not answer';
    tile.box.classList.add('wrong');
    if (++tile.absent < 30) continue; // a pod that starts anew is back before; one that is gone for good goes
    inView.unobserve(tile.box);
    tile.box.remove();
    shown.delete(tile);
    tiles.delete(pod);
  }
};

// --- events ----------------------------------------------------------------------------------------------------------

const events = new Map(); // text and time -> event
const EVENT = {
  disk_agent_target_start_time_seconds: (m) => `the vhost target of ${m.node} was started`,
  video_start_time_seconds: (m) => `${m.pod} was started on ${m.node}`,
  video_disk_created_time_seconds: (m) => `disk ${disk(m.pod)} of ${m.pod} was new and blank`,
};
const note = ({ metric }, texts) => {
  for (const text of texts) {
    const time = Number(text), what = EVENT[metric.__name__](metric);
    if (time) events.set(`${time} ${what}`, { time, what });
  }
};
let eventsShown = '';
const showEvents = () => {
  const last = [...events.values()].sort((a, b) => b.time - a.time || byNumber(a.what, b.what)).slice(0, 30);
  const key = JSON.stringify(last);
  if (key === eventsShown) return;
  eventsShown = key;
  element('events').replaceChildren(...last.map(({ time, what }) => {
    const item = make('li');
    item.append(make('time', clock(time), { dateTime: new Date(time * 1000).toISOString() }), make('span', what));
    return item;
  }));
};

// --- what is not well ------------------------------------------------------------------------------------------------

let wrongShown = '';
const showWrong = (lines) => {
  const key = lines.join('\n');
  if (key === wrongShown) return;
  wrongShown = key;
  element('wrong').hidden = !lines.length;
  element('wrong').querySelector('ul').replaceChildren(...lines.map((text) => make('li', text)));
};
const words = (alert) => `${alert.annotations.summary}, since ${clock(Date.parse(alert.activeAt) / 1000)}`;

// --- all of it, again and again --------------------------------------------------------------------------------------

let answered = Date.now() / 1000;
const look = async () => {
  try {
    const [now, times, { alerts }] = await Promise.all([ask('query', { query: NOW }), ask('query', { query: TIMES }), ask('alerts', {})]);
    answered = Date.now() / 1000;
    const found = grouped(now.result);
    showWrong(alerts.filter((alert) => alert.state === 'firing').map(words).sort(byNumber));
    showCores(found);
    showTiles(found, answered);
    for (const series of times.result) note(series, [series.value[1]]);
    showEvents();
    const figures = [...found.pods.values()].map((seen) => FIGURES.slice(0, 2).map((figure) => figure.of(seen) || 0));
    const [iops, bytes] = figures.reduce(([a, b], [c, d]) => [a + c, b + d], [0, 0]);
    element('total').textContent = `${tiles.size} instances · ${short(iops, 'IOPS')} · ${short(bytes, 'MB/s')}`;
  } catch (error) {
    showWrong([`Prometheus has not answered since ${clock(answered)} (${error.message}): what is below is from then`]);
  }
};

// what was before this page was opened: lines and events
const past = async () => {
  const end = Date.now() / 1000;
  const [rates, times] = await Promise.all([
    ask('query_range', { query: '{__name__=~"disk:.+"}', start: end - (KEPT * EVERY) / 1000, end, step: EVERY / 1000 }),
    ask('query_range', { query: TIMES, start: end - HOUR, end, step: 15 }),
  ]);
  for (const series of times.result) note(series, new Set(series.values.map(([, text]) => text)));
  return rates.result;
};
const fill = (series) => {
  const pods = new Map();
  for (const { metric, values } of series) {
    const at = pods.get(metric.pod) || pods.set(metric.pod, new Map()).get(metric.pod);
    for (const [time, text] of values) {
      const seen = at.get(time) || at.set(time, {}).get(time);
      seen[metric.__name__] = Number(text);
    }
  }
  for (const [pod, at] of pods) {
    const tile = tiles.get(pod);
    if (!tile) continue;
    const before = [...at].sort(([a], [b]) => a - b);
    tile.times.unshift(...before.map(([time]) => time));
    tile.figures.forEach((figure) => figure.points.unshift(...before.map(([, seen]) => figure.of(seen)).map((v) => (Number.isFinite(v) ? v : null))));
    if (shown.has(tile)) draw(tile);
  }
};

const every = () => look().finally(() => setTimeout(every, EVERY));
look().then(past).then(fill).catch(() => { /* only what was before is missing */ }).finally(() => setTimeout(every, EVERY));
addEventListener('resize', () => {
  for (const tile of tiles.values()) for (const { chart, plot } of tile.figures) chart?.setSize({ width: Math.max(60, plot.clientWidth), height: 34 });
});
