/** The command line of restore-from-socket. */
import { commandName } from '../command-name.ts'
import { HOLD_DIRECTORY } from '../defaults.ts'
import { type SnapshotId, snapshotId } from '../format/names.ts'
import { commonHelp, criuHelp, criuOption, snapshotOption, timeoutOption, type ValuesOf } from './common-options.ts'
import { credentialHelp, credentialOptions, type Protection, readCredentials } from './credential-options.ts'
import { exitCodeHelp } from './exit-codes.ts'
import { manualVerdictHelp, manualVerdictOptions } from './manual-verdict-options.ts'
import { type Memory, memoryHelp, memoryOptions, readMemory } from './memory-options.ts'
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

export const restoreUsage = `usage: ${restore} [--from ENDPOINT] [OPTIONS] [-- CRIU OPTIONS]
       ${restore} [--from ENDPOINT] --listen -D DIR [OPTIONS]
       ${restore} [--from ENDPOINT] --to-dir DIR [OPTIONS]
       ${restore} [-D DIR] --let-run ID | --drop ID

Takes one image stream, verifies it to its end, and only then restores it with criu
restore --stream -d, serves it to a criu restore --stream that you start, or writes
a directory that criu restore -D accepts. A process that is handed over (by a cache or by
${commandName('dump-to-stdout')} --via) is restored, but does not run until its source has let it go.

      --from ENDPOINT  ${restoreOptions.from.default} (stdin, the default), HOST:PORT, unix:PATH or fd:N. A cache is asked
                       for a snapshot; any other sender just sends one
      --snapshot ID    ask a cache for this snapshot (default: the newest sealed one)
      --listen         create streamer-serve.sock in -D DIR and wait for a criu restore
      --to-dir DIR     write plain images; DIR appears when all of them are verified
${manualVerdictHelp}
  -D, --dir DIR        work directory (default: a private temporary one; for processes that
                       are held ${HOLD_DIRECTORY})
      --timeout SEC    how long to wait for a connection and for a snapshot (default: ${timeoutOption.timeout.default})
${memoryHelp}
${criuHelp}
${commonHelp}

${credentialHelp}

${exitCodeHelp}

example, on the target host:
  ${restore} --from 127.0.0.1:9997 -- --tcp-established`

type RestoreJob =
  /** `criu`: the one that is found if undefined. */
  | { kind: 'tree'; criu: string | undefined; criuOptions: readonly string[] }
  | { kind: 'listener' }
  | { kind: 'directory'; path: string }

interface RestoreChoice extends Memory {
  job: RestoreJob
  /** An endpoint. */
  from: string
  fromStdin: boolean
  protection: Protection
  id: SnapshotId | undefined
  directory: string | undefined
  timeoutMs: number
}

/** What restore-from-socket is to do where no verdict is given. `criuOptions`: what follows `--`. Throws `USAGE`. */
export function readRestoreOptions(
  values: ValuesOf<typeof restoreOptions>,
  criuOptions: readonly string[],
): RestoreChoice {
  const { from, snapshot, listen, dir, criu, 'to-dir': toDir } = values
  atMostOne({ '--listen': listen, '--to-dir': toDir, 'criu options': criuOptions.length > 0 })
  atMostOne({ '--dir': dir, '--to-dir': toDir })
  if (listen) required('--dir', dir, 'the directory that criu restore --stream gets as -D')
  return {
    id: snapshot === undefined ? undefined : snapshotId(snapshot, 'USAGE'),
    directory: dir,
    ...readMemory(values),
    timeoutMs: timeoutMs(values.timeout),
    from,
    fromStdin: from === restoreOptions.from.default,
    protection: readCredentials(values),
    job: listen
      ? { kind: 'listener' }
      : toDir !== undefined
        ? { kind: 'directory', path: toDir }
        : { kind: 'tree', criu, criuOptions },
  }
}
