// Plays the pod's playlist, and the streams that are published to it now.
'use strict';

const SKIP = 3000; // how long a movie that cannot be played is named before the next one starts, in ms
const LOOK = 3000; // how often to look for live streams, in ms

const element = (id) => document.getElementById(id);
const show = (id, text) => { element(id).textContent = text; };
const make = (tag, text, more = {}) => Object.assign(document.createElement(tag), { textContent: text }, more);
const report = (text) => {
  show('error', text);
  element('error').hidden = !text;
};
const get = async (path) => {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${answer.statusText}`);
  return answer;
};
const answers = (path) => fetch(path, { method: 'HEAD' }).then((answer) => answer.ok, () => false);
const order = (a, b) => a.name.localeCompare(b.name, 'en', { numeric: true });

// An item of the list: url, name, type; group, title, entry (its element); perhaps thumbnail, subtitles, live, broken.
const item = (movie) => {
  const cut = movie.name.lastIndexOf('/');
  return {
    ...movie,
    group: movie.name.slice(0, Math.max(cut, 0)),
    title: movie.name.slice(cut + 1).replace(/\.[^.]*$/, '').replace(/[-_]+/g, ' '),
  };
};

// seconds of a time as in #t=90, #t=1:30 and #t=0:01:30.5; the end of a range is left out
const seconds = (text) => {
  const parts = (text || '').replace(/^npt:/, '').split(',')[0].split(':').map(Number);
  const time = parts.reduce((sum, part) => sum * 60 + part, 0);
  return Number.isFinite(time) && time > 0 ? time : 0;
};
// the movie's url stays as it is written, percent-encoded: it need not be UTF-8
const hash = () => Object.fromEntries(location.hash.slice(1).split('&').map((part) => part.split(/=(.*)/s)));

// what the browser keeps of this page; it may keep nothing
const remember = (volume) => { try { localStorage.setItem('volume', JSON.stringify(volume)); } catch { /* kept nowhere */ } };
const remembered = () => { try { return JSON.parse(localStorage.getItem('volume')); } catch { return null; } };

const start = async () => {
  const [pod, marker, { movies, unlisted }] = await Promise.all(
    ['pod', 'marker', 'playlist.json'].map((path) => get(path).then((answer) => answer.json())),
  );
  const playlist = movies.map(item).sort((a, b) => a.group.localeCompare(b.group, 'en', { numeric: true }) || order(a, b));
  let current = null, waiting = 0;

  show('pod', pod.pod);
  show('disk', `disk ${pod.ordinal}`);
  show('device', `${pod.disk}, in use since ${marker.created.replace('T', ' ').replace('Z', ' UTC')}`);
  show('playlist', `${pod.playlist}, ${playlist.length} movies`);
  const rtmp = `rtmp://${location.hostname}:${pod.rtmpPort}`;
  show('publish', `ffmpeg -re -i MOVIE -c:v libx264 -preset veryfast -pix_fmt yuv420p -force_key_frames 'expr:gte(t,n_forced)' `
    + `-c:a aac -ar 44100 -f flv '${rtmp}/live/NAME?key=KEY'`);
  if (unlisted.length) {
    const box = element('unlisted');
    box.hidden = false;
    box.querySelector('summary').textContent = unlisted.length === 1 ? '1 file is not listed' : `${unlisted.length} files are not listed`;
    box.querySelector('ul').append(...unlisted.map(({ name, why }) => {
      const line = make('li', ` ${why}`);
      line.prepend(make('b', name));
      return line;
    }));
  }

  const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
  const kept = remembered();
  const player = videojs('player', {
    // a volume that the user chose is tried first; without one, and where the browser refuses sound: muted
    autoplay: still ? false : kept && !kept.muted ? 'any' : 'muted',
    fluid: true,
    aspectRatio: '16:9',
    liveui: true,
    liveTracker: { trackingThreshold: 0 }, // a stream keeps some seconds only
    errorDisplay: false, // this page names what cannot be played
    playbackRates: [0.5, 0.75, 1, 1.25, 1.5, 2],
    controlBar: { skipButtons: { backward: 10, forward: 10 } },
    userActions: { hotkeys: true },
  });
  if (kept) {
    player.volume(kept.volume);
    player.muted(kept.muted);
  }
  player.on('volumechange', () => {
    // before the user has touched the page, the browser mutes by itself
    if (!navigator.userActivation || navigator.userActivation.hasBeenActive) {
      remember({ volume: player.volume(), muted: player.muted() });
    }
  });

  const select = (chosen, { at = 0, go = true } = {}) => {
    clearTimeout(waiting);
    report('');
    current?.entry.querySelector('button').removeAttribute('aria-current');
    current = chosen;
    current.entry.querySelector('button').setAttribute('aria-current', 'true');
    show('title', chosen.title);
    const link = element('http');
    link.href = chosen.url;
    link.textContent = link.href;
    // nginx plays .mp4 in this case only; before a path with a folder, clients need `mp4:` to tell it from the application
    show('rtmp', chosen.live ? `${rtmp}/live/${chosen.name}`
      : !chosen.name.endsWith('.mp4') ? 'plays .mp4 only'
        : `${rtmp}/vod2/${chosen.group ? 'mp4:' : ''}${chosen.name}`);
    if (!chosen.live) history.replaceState(null, '', `#movie=${chosen.url}`);
    const old = player.remoteTextTracks();
    while (old.length) player.removeRemoteTextTrack(old[0]);
    player.poster(chosen.thumbnail || '');
    player.src({ src: chosen.url, type: chosen.type });
    for (const { url, language } of chosen.subtitles || []) {
      const label = language ? new Intl.DisplayNames(navigator.languages, { type: 'language' }).of(language) : 'Subtitles';
      // kept until the next movie is chosen: by itself the player drops tracks with the source, which it changes later
      player.addRemoteTextTrack({ kind: 'subtitles', src: url, srclang: language, label }, true);
    }
    if (at) player.one('loadedmetadata', () => player.currentTime(at));
    if (go) player.play()?.catch(() => { /* the browser wants a click first */ });
  };

  const next = () => {
    const from = playlist.indexOf(current); // a live stream is not in it: then the first movie
    const whole = playlist.map((_, i) => playlist[(from + 1 + i) % playlist.length]).filter((movie) => !movie.broken);
    if (whole.length) select(whole[0]);
    else report(`This browser can play none of the ${playlist.length} movies.`);
  };

  // Names what the browser cannot play, and goes on. A pod that does not answer is waited for.
  const skip = async (reason) => {
    const failed = current, at = player.currentTime();
    if (!failed || failed.failing) return;
    failed.failing = true;
    const there = await answers(failed.url);
    failed.failing = false;
    if (failed !== current) return;
    clearTimeout(waiting);
    if (failed.live) {
      report(`The stream ${failed.title} has stopped.`);
      waiting = setTimeout(next, SKIP);
    } else if (there) {
      failed.broken = true;
      failed.entry.classList.add('broken');
      failed.entry.querySelector('small').textContent = 'cannot be played';
      report(`${failed.name} cannot be played: ${reason}. The next movie follows.`);
      waiting = setTimeout(next, SKIP);
    } else {
      report(`${pod.pod} does not answer; ${failed.name} goes on when it does.`);
      waiting = setTimeout(() => (failed === current ? select(failed, { at }) : null), SKIP);
    }
  };
  player.on('error', () => skip(player.error()?.code === 4
    ? 'this browser knows no such format, or the file is damaged' : 'the file is damaged'));
  // a picture that the browser cannot decode is left out without an error, and the sound plays
  player.on('loadeddata', () => { if (!current.live && !player.videoWidth()) skip('this browser cannot show its picture'); });
  player.on('playing', () => {
    if (!current.broken || !player.videoWidth()) return;
    current.broken = false;
    current.entry.classList.remove('broken');
    current.entry.querySelector('small').textContent = '';
  });
  player.on('ended', next);
  // All of a file has arrived and the browser still waits: the file ends too early.
  let stood = 0;
  setInterval(() => {
    const video = player.tech(true)?.el();
    const stands = video && !current?.live && !video.paused && !video.ended && !video.error
      && video.readyState < 3 && video.networkState === HTMLMediaElement.NETWORK_IDLE;
    stood = stands ? stood + 1 : 0;
    if (stood === 3) skip('the file ends too early');
  }, 1000);

  const entry = (of) => {
    const button = make('button', '', { type: 'button' });
    if (of.thumbnail) button.append(make('img', '', { src: of.thumbnail, alt: '', loading: 'lazy', width: 320, height: 180 }));
    button.append(make('span', of.title), make('small', ''));
    button.addEventListener('click', () => select(of));
    of.entry = make('li', '');
    of.entry.append(button);
    return of.entry;
  };
  const groups = Map.groupBy ? Map.groupBy(playlist, (movie) => movie.group)
    : playlist.reduce((all, movie) => all.set(movie.group, [...(all.get(movie.group) || []), movie]), new Map());
  const live = make('ul', '');
  const liveTitle = make('h3', 'Live', { hidden: true });
  element('movies').append(liveTitle, live);
  for (const [name, of] of groups) {
    const list = make('ul', '');
    list.append(...of.map(entry));
    if (name) element('movies').append(make('h3', name));
    element('movies').append(list);
  }

  const streams = new Map();
  const look = async () => {
    const text = await get('stat').then((answer) => answer.text());
    const stat = new DOMParser().parseFromString(text, 'text/xml');
    const names = [...stat.querySelectorAll('application > live > stream')]
      .filter((stream) => stream.querySelector('publishing')).map((stream) => stream.querySelector('name').textContent);
    for (const name of names.filter((each) => !streams.has(each))) {
      const url = `hls/${name}.m3u8`;
      if (!(await answers(url))) continue; // its first segment is not complete
      const stream = { url, name, title: name, group: 'Live', type: 'application/x-mpegURL', live: true };
      streams.set(name, stream);
      live.append(entry(stream));
    }
    for (const [name, stream] of streams) {
      if (names.includes(name)) continue;
      streams.delete(name);
      stream.entry.remove();
      if (stream === current) {
        report(`The stream ${name} has ended.`);
        clearTimeout(waiting);
        waiting = setTimeout(next, SKIP);
      }
    }
    liveTitle.hidden = !streams.size;
  };
  const watch = () => look().catch(() => { /* the pod restarts: the next look tells */ }).finally(() => setTimeout(watch, LOOK));
  watch();

  const asked = () => {
    const { movie, t } = hash();
    return [playlist.find(({ url }) => url === movie), seconds(t)];
  };
  addEventListener('hashchange', () => {
    const [movie, at] = asked();
    if (movie || at) select(movie || current, { at });
  });
  const [first, at] = asked();
  select(first || playlist[0], { at, go: false });
};

start().catch((error) => report(`This pod cannot show its playlist: ${error.message}`));
