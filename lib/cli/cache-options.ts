/** The command line of cache. */

import { commandName } from '../command-name.ts'
import { Fault } from '../fault.ts'
import {
  addressOption,
  criuHelp,
  criuOption,
  daemonCommonHelp,
  readSnapshot,
  snapshotOption,
  timeoutOption,
  type ValuesOf,
} from './common-options.ts'
import { credentialHelp, credentialOptions, readCredentials } from './credential-options.ts'
import { daemonHelp, daemonOptions } from './daemon.ts'
import { exitCodeHelp } from './exit-codes.ts'
import { inheritedFd, listenFd } from './inherited-fds.ts'
import { manualVerdictHelp, manualVerdictOptions, readManualVerdict } from './manual-verdict-options.ts'
import { memoryHelp, memoryOptions, readMemory } from './memory-options.ts'
import { atMostOne, portOf, required, timeoutMs } from './parse.ts'
import { isCriuRemote, wireHelp, wireOption } from './wire-option.ts'

export const cacheOptions = {
  port: { type: 'string' },
  ...addressOption,
  'ps-socket': { type: 'string' },
  dir: { type: 'string', short: 'D' },
  ...snapshotOption,
  restore: { type: 'boolean', default: false },
  'release-early': { type: 'boolean', default: false },
  keep: { type: 'boolean', default: false },
  dedup: { type: 'boolean', default: false },
  ls: { type: 'boolean', default: false },
  json: { type: 'boolean', default: false },
  rm: { type: 'string' },
  pin: { type: 'string' },
  unpin: { type: 'string' },
  ...manualVerdictOptions,
  ...criuOption,
  ...timeoutOption,
  ...memoryOptions,
  ...wireOption,
  ...credentialOptions,
  ...daemonOptions,
} as const

const cache = commandName('cache')

const usage = `usage: ${cache} --port N -D DIR [OPTIONS] [-- CRIU OPTIONS]
       ${cache} -D DIR --ls [--json] | --rm ID | --pin ID | --unpin ID
       ${cache} -D DIR --let-run ID | --drop ID

The image-cache, a daemon on the target host. It keeps the snapshots of proxies in memory
for criu restore --stream -D DIR and ${commandName('restore-from-socket')}, which wait for theirs.
With --action-script DIR/post-restore criu restore takes part in a hand-over.

      --port N         the port to listen on; 0: the kernel chooses it, and it is printed.
                       Without --port: the listener that systemd hands over (LISTEN_FDS)
      --address HOST   the address to listen on (default: ${cacheOptions.address.default})
      --ps-socket FD   the first connection: FD is a socket that is connected to a client.
                       Without --port it is the only one
  -D, --dir DIR        made if it is missing; gets streamer-serve.sock and img-cache.sock
      --snapshot ID    the snapshot that criu restore gets (default: the newest sealed one)
      --restore        restore every process that is handed over, as soon as its images are
                       here
      --release-early  free the images while they are restored: less memory, but only one try
      --keep           keep a snapshot whose process runs, for more restores of it (--rm removes
                       it). Copies of one process share its identity: pids, host name, keys,
                       connections. Give each a pid and a network namespace
      --dedup          let senders leave out pages that are here, and store those once. A
                       sender learns which pages are here: for snapshots of one owner
      --ls             list what the cache in DIR holds: id, state, memory, age
      --json           print the list as one JSON object
      --rm ID          remove a snapshot or an unfinished chain; refused where a process may
                       be lost with it
      --pin ID         keep this snapshot, as --keep does, also when memory runs out
      --unpin ID       undo --pin; this does not remove the snapshot
${manualVerdictHelp}
${criuHelp}
      --timeout SEC    how long a restore waits for its snapshot, how long an unfinished chain
                       is kept when memory runs out, and how long a transfer may stand still
                       (default: ${cacheOptions.timeout.default})
${memoryHelp}
${wireHelp}
${daemonCommonHelp}

${daemonHelp}

${credentialHelp}

${exitCodeHelp}

example, on the target host:
  ${cache} --port 9997 -D /run/ferry &
  criu restore --stream -d -D /run/ferry`

type Values = ValuesOf<typeof cacheOptions>

export const cacheCommand = { name: cache, usage, options: cacheOptions, daemon: true as const }

/** What the cache that runs in a directory is asked for; undefined where a cache is to be started. Throws `USAGE`. */
export function readCacheRequest(values: Values) {
  const { dir, ls, json, rm, pin, unpin, drop, 'let-run': letRun } = values
  const directory = required('--dir', dir, 'the directory that criu restore --stream gets as -D')
  const questions = { '--ls': ls, '--rm': rm, '--pin': pin, '--unpin': unpin, '--let-run': letRun, '--drop': drop }
  const asks = atMostOne(questions)
  if (json && !ls) throw new Fault('USAGE', '--json is for --ls', { hint: 'add --ls' })
  const verdict = readManualVerdict(values)
  return asks ? { directory, ls, json, rm, pin, unpin, verdict } : undefined
}

/** The cache that is to be started. `criuOptions`: what follows `--`. Throws `USAGE`. */
export function readCacheOptions(values: Values, criuOptions: readonly string[]) {
  const { dir, snapshot, keep, dedup, restore, criu, 'release-early': releaseEarly, 'ps-socket': psSocket } = values
  const directory = required('--dir', dir, 'the directory that criu restore --stream gets as -D')
  atMostOne({ '--keep': keep, '--release-early': releaseEarly })
  if (!restore) atMostOne({ 'a cache without --restore': true, 'criu options': criuOptions.length > 0 })
  const refused = { '--snapshot': snapshot, '--restore': restore, '--keep': keep, '--release-early': releaseEarly }
  const listener = listenFd()
  return {
    host: values.address,
    port: readPort(values, listener),
    /** The descriptor of a listening socket that systemd handed over. */
    listener,
    /** The descriptor of the first connection, if it was handed over. */
    connection: psSocket === undefined ? undefined : inheritedFd('--ps-socket', psSocket),
    ...readCredentials(values),
    directory,
    id: readSnapshot(values),
    timeoutMs: timeoutMs(values.timeout),
    ...readMemory(values),
    ...{ keep, dedup, releaseEarly },
    criuRemote: isCriuRemote(values, refused),
    /** Undefined: it restores nothing by itself. `criu`: the one that is found if undefined. */
    restore: restore ? { criu, options: criuOptions } : undefined,
  }
}

/** The port to listen on; none where a listener or the one connection was handed over. */
function readPort({ port, 'ps-socket': psSocket }: Values, listener: number | undefined): number | undefined {
  atMostOne({ '--port': port, LISTEN_FDS: listener })
  if (psSocket === undefined && listener === undefined) required('--port', port, 'as in --port 9997')
  return portOf('--port', port)
}
