// What nginx counts, for Prometheus: of HTTP by its own status page, of RTMP and live streams by the RTMP module's.
async function metrics(r) {
    const answers = await Promise.all([r.subrequest('/counted'), r.subrequest('/stat')]);
    const http = answers[0].responseText, rtmp = answers[1].responseText;
    // a movie that is played is a stream too, without a publisher
    const live = rtmp.split('<stream>').slice(1).filter((stream) => stream.includes('<publishing/>'));
    const lines = [
        family('video_connections', 'gauge', [['', number(http, /Active connections: (\d+)/)]]),
        family('video_http_requests_total', 'counter', [['', number(http, /\d+ \d+ (\d+)/)]]),
        family('video_rtmp_bytes_total', 'counter', [
            ['{direction="in"}', number(rtmp, /<bytes_in>(\d+)</)],
            ['{direction="out"}', number(rtmp, /<bytes_out>(\d+)</)],
        ]),
        family('video_stream_clients', 'gauge', live.map((stream) => [
            `{stream="${(stream.match(/<name>([^<]*)</) || ['', ''])[1]}"}`, number(stream, /<nclients>(\d+)</),
        ])),
    ];
    r.headersOut['Content-Type'] = 'text/plain; version=0.0.4';
    r.return(200, r.variables.of_the_pod + lines.join(''));
}

// undefined where a status page is not understood: then there is no such series
function number(text, pattern) {
    const found = text.match(pattern);
    return found ? found[1] : undefined;
}

function family(name, type, values) {
    const known = values.filter((pair) => pair[1] !== undefined).map((pair) => `${name}${pair[0]} ${pair[1]}\n`);
    return `# TYPE ${name} ${type}\n${known.join('')}`;
}

export default { metrics };
