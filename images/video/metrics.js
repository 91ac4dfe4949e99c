// What nginx counts, for Prometheus: of HTTP by its own status page, of RTMP and live streams by the RTMP module's.
async function metrics(r) {
    const [http, rtmp] = await Promise.all(['/counted', '/stat'].map((path) => r.subrequest(path)));
    const [, active, requests] = http.responseText.match(/^Active connections: (\d+)[\s\S]*?\d+ \d+ (\d+)/) || [];
    const lines = [
        ...family('video_connections', 'gauge', [['', active]]),
        ...family('video_http_requests_total', 'counter', [['', requests]]),
        ...family('video_rtmp_bytes_total', 'counter', ['in', 'out'].map((way) => [
            `{direction="${way}"}`, (rtmp.responseText.match(`<bytes_${way}>(\\d+)<`) || [])[1],
        ])),
    ];
    const streams = [...rtmp.responseText.matchAll(/<stream>\s*<name>([^<]*)<\/name>([\s\S]*?)<\/stream>/g)];
    // a movie that is played is a stream too, without a publisher
    const live = streams.filter(([, , about]) => about.includes('<publishing/>'));
    lines.push(...family('video_stream_clients', 'gauge', live.map(([, name, about]) => [
        `{stream="${name}"}`, (about.match(/<nclients>(\d+)</) || [])[1],
    ])));
    r.headersOut['Content-Type'] = 'text/plain; version=0.0.4';
    r.return(200, `${r.variables.of_the_pod}${lines.join('\n')}\n`);
}

// A status page that is not understood gives no series.
const family = (name, type, values) => [
    `# TYPE ${name} ${type}`,
    ...values.filter(([, value]) => value !== undefined).map(([labels, value]) => `${name}${labels} ${value}`),
];

export default { metrics };
