/** The command line of dump-to-stdout. */
import { commandName } from '../command-name.ts'
import { HOLD_DIRECTORY } from '../defaults.ts'
import { untils } from '../format/enums.ts'
import { snapshotId } from '../format/names.ts'
import {
  commonHelp,
  criuHelp,
  criuOption,
  readSnapshot,
  snapshotHelp,
  snapshotOption,
  type ValuesOf,
} from './common-options.ts'
import { exitCodeHelp } from './exit-codes.ts'
import { atMostOne, oneOf, readPid, required, timeoutMs } from './parse.ts'
import { readSendOptions, sendHelp, sendOptions } from './send-options.ts'

export const dumpOptions = {
  tree: { type: 'string', short: 't' },
  listen: { type: 'boolean', default: false },
  'from-dir': { type: 'string' },
  via: { type: 'string' },
  until: { type: 'string' },
  timeout: { type: 'string' },
  settle: { type: 'string' },
  dir: { type: 'string', short: 'D' },
  ...snapshotOption,
  ...criuOption,
  ...sendOptions,
} as const

const DEFAULT_UNTIL = 'running'
/** Seconds. The target of a hand-over answers by itself. */
const DEFAULT_TARGET_TIMEOUT = '60'
/** Seconds. Whoever reads stdout may be a person who types a password, while the process is frozen. */
const DEFAULT_READER_TIMEOUT = '300'

const [dump, restore] = [commandName('dump-to-stdout'), commandName('restore-from-socket')]
/** What ssh runs, with its installed name: at the other host nobody has set PATH to a checkout. */
const target = 'ssh host criu-restore-from-socket --from -'

const usage = `usage: ${dump} -t PID [--via COMMAND] [OPTIONS] [-- CRIU OPTIONS]
       ${dump} --listen -D DIR [OPTIONS]
       ${dump} --from-dir DIR [OPTIONS]
       ${dump} --settle ID --via COMMAND [-D DIR]

Writes one image stream to stdout: of the process tree PID, which criu dump freezes,
of a criu dump --stream that you start, or of a directory of images. criu kills the tree
after all its images are written; if anything fails before that, the tree runs on.

  -t, --tree PID       dump this process and its children with criu dump --stream
      --listen         create streamer-capture.sock in -D DIR and wait for a criu dump
      --from-dir DIR   send the images that criu dump -D left in DIR, with the pages that are
                       in its parents
      --via COMMAND    instead of writing to stdout, hand the process over to the
                       ${restore} that COMMAND starts. The process is killed
                       here only when that is ready
      --until WHAT     with --via: kill the process here when the target has restored it
                       (${DEFAULT_UNTIL}, the default), or when it has all images (sealed)
      --timeout SEC    how long criu may be silent while the process is frozen; also how long
                       the target of --via may take to agree (default: ${DEFAULT_TARGET_TIMEOUT}), or how long
                       the reader of stdout may read nothing (default: ${DEFAULT_READER_TIMEOUT})
      --settle ID      tell the target what became of the process of snapshot ID, whose
                       ${dump} was killed or could not reach the target
  -D, --dir DIR        work directory (default: a private temporary one; for the verdicts
                       of --via: ${HOLD_DIRECTORY})
${snapshotHelp}
${criuHelp}
${sendHelp}
${commonHelp}

${exitCodeHelp}

example, on the source host:
  ${dump} -t $PID | ${target}
  ${dump} -t $PID --via '${target}'`

export const dumpCommand = { name: dump, usage, options: dumpOptions }

type Values = ValuesOf<typeof dumpOptions>

/** What dump-to-stdout is to do. `criuOptions`: what follows `--`. Throws `USAGE`. */
export function readDumpOptions(values: Values, criuOptions: readonly string[]) {
  const { tree, listen, dir, via, settle, 'from-dir': fromDir } = values
  atMostOne({ '--tree': tree, '--listen': listen, '--from-dir': fromDir, '--settle': settle })
  atMostOne({ '--dir': dir, '--from-dir': fromDir })
  if (tree === undefined) atMostOne({ '--listen or --from-dir': true, 'criu options': criuOptions.length > 0 })
  if (via === undefined) atMostOne({ '--until': values.until, 'no --via': true })
  else if (settle === undefined) required('--tree', tree, '--via hands a process over: name it with -t PID')
  return {
    timeoutMs: timeoutMs(values.timeout ?? (via === undefined ? DEFAULT_READER_TIMEOUT : DEFAULT_TARGET_TIMEOUT)),
    id: readSnapshot(values),
    directory: dir,
    send: readSendOptions(values),
    job: readJob(values, criuOptions),
  }
}

/** `criu`: the one that is found if undefined. */
function readJob(values: Values, criuOptions: readonly string[]) {
  const { tree, listen, dir, criu, snapshot, via, settle, until, 'from-dir': path } = values
  if (settle !== undefined) {
    const command = required('--via', via, 'the command that leads to its target')
    atMostOne({ '--settle': true, '--until or --snapshot': until ?? snapshot })
    return { kind: 'settle' as const, settled: snapshotId(settle, 'USAGE'), command }
  }
  if (path !== undefined) return { kind: 'directory' as const, path }
  if (listen) {
    required('--dir', dir, 'the directory that criu dump --stream gets as -D')
    return { kind: 'listener' as const }
  }
  const job = { pid: readPid(required('--tree', tree, `${dump} --help`)), criu, criuOptions }
  if (via === undefined) return { kind: 'tree' as const, ...job }
  return { kind: 'hand-over' as const, ...job, command: via, until: oneOf('--until', until ?? DEFAULT_UNTIL, untils) }
}
