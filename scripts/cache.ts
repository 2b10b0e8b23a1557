#!/usr/bin/env node
import { daemonHelp, daemonOptions } from '../lib/cli/daemon.ts'
import { exitCodeHelp } from '../lib/cli/exit.ts'
import { inheritedFd, listenFd } from '../lib/cli/inherited.ts'
import { main } from '../lib/cli/main.ts'
import { atMostOne, maxMemory, required, timeoutMs, wholeNumber } from '../lib/cli/values.ts'
import { snapshotId } from '../lib/format/names.ts'
import { notify } from '../lib/kernel/notify.ts'
import { cache } from '../lib/role/cache.ts'
import { inheritedEndpoint, inheritedListener, refuseOpenNetwork } from '../lib/stream/endpoint.ts'

const usage = `usage: cache --port N -D DIR [OPTIONS]

The image-cache, a daemon on the target host: takes snapshots from proxies, keeps
them in memory, and hands them to criu restore --stream -D DIR and to
restore-from-socket. A restore that comes before its snapshot waits for it.

      --port N         port to listen on; 0: the kernel chooses, and it is printed
      --address HOST   address to listen on (default: 127.0.0.1)
                       without --port: the listener that systemd hands over (LISTEN_FDS)
      --ps-socket FD   the first connection: FD is a socket that is connected to a
                       client; without --port it is the only one
  -D, --dir DIR        directory for streamer-serve.sock; made if it is missing
      --snapshot ID    the snapshot that criu restore gets (default: the newest sealed)
      --timeout SEC    how long a restore may wait for its snapshot (default: 60)
      --max-memory SZ  most memory for images (default: 80 % of this machine's)
      --insecure       allow plain TCP on another address than loopback
  -q, --quiet          only errors
  -h, --help           this text               -V, --version

${daemonHelp}

${exitCodeHelp}

example, on the target host:
  cache --port 9997 -D /run/ferry &
  criu restore --stream -d -D /run/ferry`

const options = {
  port: { type: 'string' },
  address: { type: 'string', default: '127.0.0.1' },
  dir: { type: 'string', short: 'D' },
  snapshot: { type: 'string' },
  timeout: { type: 'string' },
  'max-memory': { type: 'string' },
  insecure: { type: 'boolean', default: false },
  ...daemonOptions,
} as const

main({ name: 'cache', usage, options, daemon: { notify } }, async ({ values, report, signal, onStatus }) => {
  const { port, address, dir, snapshot, timeout, insecure, 'ps-socket': psSocket } = values
  const listener = listenFd()
  atMostOne({ '--port': port, LISTEN_FDS: listener })
  const where =
    listener === undefined ? { host: address, port: portNumber(port, psSocket) } : inheritedListener(listener)
  if (!insecure && where.port !== undefined) await refuseOpenNetwork(where.host)
  const peer =
    psSocket === undefined ? undefined : await inheritedEndpoint(inheritedFd('--ps-socket', psSocket), insecure)
  await cache({
    ...where,
    first: peer?.take(),
    directory: required('--dir', dir, 'the directory that criu restore --stream gets as -D'),
    id: snapshot === undefined ? undefined : snapshotId(snapshot, 'USAGE'),
    timeoutMs: timeoutMs(timeout, 60_000),
    maxMemory: maxMemory(values['max-memory']),
    report,
    signal,
    onStatus,
  })
})

/** None is needed where there is a connection already. */
function portNumber(port: string | undefined, psSocket: string | undefined): number | undefined {
  if (port === undefined && psSocket !== undefined) return undefined
  return wholeNumber('--port', required('--port', port, 'as in --port 9997'), 0, 65535)
}
