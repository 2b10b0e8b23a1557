#!/usr/bin/env node
import { exitCodeHelp } from '../lib/cli/exit.ts'
import { main } from '../lib/cli/main.ts'
import { atMostOne, maxMemory, required, timeoutMs, wholeNumber } from '../lib/cli/values.ts'
import { snapshotId } from '../lib/format/names.ts'
import { cache, decideByHand } from '../lib/role/cache.ts'
import { findCriu } from '../lib/role/criu.ts'
import { refuseOpenNetwork } from '../lib/stream/endpoint.ts'

const usage = `usage: cache --port N -D DIR [OPTIONS] [-- CRIU OPTIONS]
       cache -D DIR --let-run ID | --drop ID

The image-cache, a daemon on the target host: takes snapshots from proxies, keeps
them in memory, and hands them to criu restore --stream -D DIR and to
restore-from-socket. A restore that comes before its snapshot waits for it.
A criu restore with --action-script DIR/post-restore is held until the source
has let its process go.

      --port N         port to listen on; 0: the kernel chooses, and it is printed
      --address HOST   address to listen on (default: 127.0.0.1)
  -D, --dir DIR        directory for streamer-serve.sock; made if it is missing
      --snapshot ID    the snapshot that criu restore gets (default: the newest sealed)
      --restore        restore every process that is handed over, as soon as it is here
      --let-run ID     tell the running cache in DIR: the process of ID is gone at its
                       source, let the copy run. Only if you know: else there are two
      --drop ID        the same: it runs on at its source, drop the copy
      --criu PATH      which criu (default: $FERRY_CRIU, the fetched one, $PATH)
      --timeout SEC    how long a restore may wait for its snapshot (default: 60)
      --max-memory SZ  most memory for images (default: 80 % of this machine's)
      --insecure       allow plain TCP on another address than loopback
  -q, --quiet          only errors
  -h, --help           this text               -V, --version

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
  restore: { type: 'boolean', default: false },
  criu: { type: 'string' },
  'let-run': { type: 'string' },
  drop: { type: 'string' },
  'max-memory': { type: 'string' },
  insecure: { type: 'boolean', default: false },
} as const

main({ name: 'cache', usage, options, daemon: true }, async ({ values, rest, report, signal }) => {
  const { port, address, dir, snapshot, timeout, insecure, restore, criu, drop, 'let-run': letRun } = values
  const directory = required('--dir', dir, 'the directory that criu restore --stream gets as -D')
  atMostOne({ '--port': port, '--let-run': letRun, '--drop': drop })
  if (!restore) atMostOne({ 'a cache without --restore': true, 'criu options': rest.length > 0 })
  if (letRun !== undefined) return decideByHand(directory, snapshotId(letRun, 'USAGE'), 'go', report)
  if (drop !== undefined) return decideByHand(directory, snapshotId(drop, 'USAGE'), 'drop', report)
  if (!insecure) await refuseOpenNetwork(address)
  await cache({
    host: address,
    port: wholeNumber('--port', required('--port', port, 'as in --port 9997'), 0, 65535),
    directory,
    id: snapshot === undefined ? undefined : snapshotId(snapshot, 'USAGE'),
    timeoutMs: timeoutMs(timeout, 60_000),
    maxMemory: maxMemory(values['max-memory']),
    restore: restore ? { criu: findCriu(criu), options: rest } : undefined,
    report,
    signal,
  })
})
