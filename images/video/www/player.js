// Plays what lies on the disk: the playlist is the listing of its movies, the thumbnails that of img/.
'use strict';

const get = async (path) => {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${answer.statusText}`);
  return answer.json();
};
const show = (id, text) => { document.getElementById(id).textContent = text; };
const stem = (name) => name.replace(/\.[^.]*$/, '');
const files = (listing, pattern) =>
  listing.filter((entry) => entry.type === 'file' && pattern.test(entry.name))
    .sort((a, b) => a.name.localeCompare(b.name, 'en', { numeric: true }));

const start = async () => {
  const [pod, marker, movies, images] = await Promise.all([
    get('pod'), get('marker'), get('playlist.json'), get('img/').catch(() => []), // thumbnails are optional
  ]);
  const thumbnails = new Map(files(images, /\.(jpg|png)$/i).map((image) =>
    // the time in the link: browsers keep images for long, and must notice a new one
    [stem(image.name), `img/${encodeURIComponent(image.name)}?${Date.parse(image.mtime)}`]));

  const playlist = files(movies, /\.mp4$/).map(({ name }) => ({
    file: name,
    name: stem(name).replace(/[-_]+/g, ' '),
    sources: [{ src: encodeURIComponent(name), type: 'video/mp4' }],
    poster: thumbnails.get(stem(name)),
    thumbnail: thumbnails.get(stem(name)),
  }));

  show('pod', pod.pod);
  show('disk', `disk ${pod.ordinal}`);
  show('device', `${pod.disk}, in use since ${marker.created.replace('T', ' ').replace('Z', ' UTC')}`);
  show('playlist', `${pod.playlist}, ${playlist.length} movies`);

  const player = videojs('player', { autoplay: 'muted', fluid: true, aspectRatio: '16:9' });
  player.on('loadstart', () => {
    const movie = playlist[player.playlist.currentItem()];
    if (!movie) return;
    const link = document.getElementById('http');
    link.href = movie.sources[0].src;
    link.textContent = link.href;
    show('title', movie.name);
    show('rtmp', `rtmp://${location.hostname}:${pod.rtmpPort}/vod2/${movie.file}`);
  });
  player.playlist(playlist);
  player.playlist.autoadvance(0);
  player.playlist.repeat(true);
  player.playlistUi({ playOnSelect: true });
};

start().catch((error) => {
  show('error', `This pod cannot show its playlist: ${error.message}`);
  document.getElementById('error').hidden = false;
});
