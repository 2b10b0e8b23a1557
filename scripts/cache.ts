#!/usr/bin/env node
import { credentialHelp, credentialOptions, credentialsOf } from '../lib/cli/credentials.ts'
import { daemonHelp, daemonOptions } from '../lib/cli/daemon.ts'
import { exitCodeHelp } from '../lib/cli/exit.ts'
import { inheritedFd, listenFd, listenHelp, listenPort } from '../lib/cli/inherited.ts'
import { main } from '../lib/cli/main.ts'
import { memoryHelp, memoryOf, memoryOptions } from '../lib/cli/memory.ts'
import { atMostOne, required, timeoutMs } from '../lib/cli/values.ts'
import { snapshotId } from '../lib/format/names.ts'
import { notify } from '../lib/kernel/notify.ts'
import { byHandHelp, byHandOptions, decideByHand, saidByHand } from '../lib/role/by-hand.ts'
import { CACHE_SOCKET, cache } from '../lib/role/cache.ts'
import { findCriu } from '../lib/role/criu.ts'
import { checkNetwork, inheritedEndpoint, inheritedListener } from '../lib/stream/endpoint.ts'

const usage = `usage: cache --port N -D DIR [OPTIONS] [-- CRIU OPTIONS]
       cache -D DIR --let-run ID | --drop ID

The image-cache, a daemon on the target host: keeps the snapshots of proxies in memory
for criu restore --stream -D DIR and restore-from-socket, which wait for theirs.
With --action-script DIR/post-restore criu restore takes part in a hand-over.

${listenHelp}
  -D, --dir DIR        directory for streamer-serve.sock; made if it is missing
      --snapshot ID    the snapshot that criu restore gets (default: the newest sealed)
      --restore        restore every process that is handed over, as soon as it is here
      --release-early  give its memory back meanwhile: less memory, but only one try
${byHandHelp}
      --criu PATH      which criu (default: $FERRY_CRIU, the fetched one, $PATH)
      --timeout SEC    how long a restore may wait for its snapshot (default: 60)
${memoryHelp}
  -q, --quiet          only errors     -h, --help   this text     -V, --version

${[daemonHelp, credentialHelp, exitCodeHelp].join('\n\n')}

example, on the target host:
  cache --port 9997 -D /run/ferry &
  criu restore --stream -d -D /run/ferry`

const options = {
  port: { type: 'string' },
  address: { type: 'string', default: '127.0.0.1' },
  dir: { type: 'string', short: 'D' },
  snapshot: { type: 'string' },
  timeout: { type: 'string' },
  restore: { type: 'boolean', default: false },
  'release-early': { type: 'boolean', default: false },
  criu: { type: 'string' },
  ...memoryOptions,
  ...byHandOptions,
  ...credentialOptions,
  ...daemonOptions,
} as const

main({ name: 'cache', usage, options, daemon: { notify } }, async ({ values, rest, report, signal, onStatus }) => {
  const { port, address, dir, snapshot, timeout, insecure, 'ps-socket': psSocket } = values
  const directory = required('--dir', dir, 'the directory that criu restore --stream gets as -D')
  const said = saidByHand(values)
  if (said !== undefined) return decideByHand(directory, CACHE_SOCKET, said)
  if (!values.restore) atMostOne({ 'a cache without --restore': true, 'criu options': rest.length > 0 })
  const [listener, number] = [listenFd(), listenPort(port, psSocket)]
  const where = listener === undefined ? { host: address, port: number } : inheritedListener(listener)
  const credentials = credentialsOf(values)
  if (where.port !== undefined) await checkNetwork(where.host, credentials, insecure)
  const peer = psSocket && (await inheritedEndpoint(inheritedFd('--ps-socket', psSocket), insecure))
  await cache({
    ...where,
    first: peer ? peer.take() : undefined,
    credentials,
    directory,
    id: snapshot === undefined ? undefined : snapshotId(snapshot, 'USAGE'),
    timeoutMs: timeoutMs(timeout, 60_000),
    ...memoryOf(values),
    releaseEarly: values['release-early'],
    restore: values.restore ? { criu: findCriu(values.criu), options: rest } : undefined,
    report,
    signal,
    onStatus,
  })
})
