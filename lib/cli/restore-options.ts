/** The command line of restore-from-socket. */
import { commandName } from '../command-name.ts'
import { HOLD_DIRECTORY } from '../defaults.ts'
import {
  commonHelp,
  criuHelp,
  criuOption,
  readSnapshot,
  snapshotOption,
  timeoutOption,
  type ValuesOf,
} from './common-options.ts'
import { credentialHelp, credentialOptions, readCredentials } from './credential-options.ts'
import { exitCodeHelp } from './exit-codes.ts'
import { manualVerdictHelp, manualVerdictOptions } from './manual-verdict-options.ts'
import { memoryHelp, memoryOptions, readMemory } from './memory-options.ts'
import { atMostOne, required, timeoutMs } from './parse.ts'

export const restoreOptions = {
  from: { type: 'string', default: '-' },
  ...snapshotOption,
  listen: { type: 'boolean', default: false },
  'to-dir': { type: 'string' },
  ...manualVerdictOptions,
  dir: { type: 'string', short: 'D' },
  ...timeoutOption,
  ...memoryOptions,
  ...criuOption,
  ...credentialOptions,
} as const

const restore = commandName('restore-from-socket')

const usage = `usage: ${restore} [--from ENDPOINT] [OPTIONS] [-- CRIU OPTIONS]
       ${restore} [--from ENDPOINT] --listen -D DIR [OPTIONS]
       ${restore} [--from ENDPOINT] --to-dir DIR [OPTIONS]
       ${restore} [-D DIR] --let-run ID | --drop ID

Takes one image stream, verifies it to its end, and only then restores it with criu
restore --stream -d, serves it to a criu restore --stream that you start, or writes
a directory that criu restore -D accepts. A process that is handed over (by a cache or by
${commandName('dump-to-stdout')} --via) is restored, but does not run until its source has killed its own.

      --from ENDPOINT  ${restoreOptions.from.default} (stdin, the default), HOST:PORT, unix:PATH or fd:N.
                       A cache is asked for a snapshot; any other sender just sends one
      --snapshot ID    ask a cache for this snapshot (default: the newest sealed one)
      --listen         create streamer-serve.sock in -D DIR and wait for a criu restore
      --to-dir DIR     write plain images; DIR appears when all of them are verified
${manualVerdictHelp}
  -D, --dir DIR        work directory (default: a private temporary one; for processes that
                       are held: ${HOLD_DIRECTORY})
      --timeout SEC    how long to wait for a connection and for a snapshot (default: ${timeoutOption.timeout.default})
${memoryHelp}
${criuHelp}
${commonHelp}

${credentialHelp}

${exitCodeHelp}

example, on the target host:
  ${restore} --from 127.0.0.1:9997 -- --tcp-established`

export const restoreCommand = { name: restore, usage, options: restoreOptions }

type Values = ValuesOf<typeof restoreOptions>

/** What restore-from-socket is to do where no verdict is given. `criuOptions`: what follows `--`. Throws `USAGE`. */
export function readRestoreOptions(values: Values, criuOptions: readonly string[]) {
  const { from, listen, dir, 'to-dir': toDir } = values
  atMostOne({ '--listen': listen, '--to-dir': toDir, 'criu options': criuOptions.length > 0 })
  atMostOne({ '--dir': dir, '--to-dir': toDir })
  if (listen) required('--dir', dir, 'the directory that criu restore --stream gets as -D')
  return {
    id: readSnapshot(values),
    directory: dir,
    ...readMemory(values),
    timeoutMs: timeoutMs(values.timeout),
    from,
    fromStdin: from === restoreOptions.from.default,
    ...readCredentials(values),
    job: readJob(values, criuOptions),
  }
}

/** `criu`: the one that is found if undefined. */
function readJob({ listen, criu, 'to-dir': path }: Values, criuOptions: readonly string[]) {
  if (listen) return { kind: 'listener' as const }
  return path === undefined ? { kind: 'tree' as const, criu, criuOptions } : { kind: 'directory' as const, path }
}
