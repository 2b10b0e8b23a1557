/** The command line of dump-to-stdout. */
import { type Until, untils } from '../format/enums.ts'
import { type SnapshotId, snapshotId } from '../format/names.ts'
import { commonHelp, criuHelp, criuOption, snapshotHelp, snapshotOption, type ValuesOf } from './common-options.ts'
import { exitCodeHelp } from './exit-codes.ts'
import { atMostOne, oneOf, readPid, required, timeoutMs } from './parse.ts'
import { readSendOptions, type SendChoice, sendHelp, sendOptions } from './send-options.ts'

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

export const dumpUsage = `usage: dump-to-stdout -t PID [--via COMMAND] [OPTIONS] [-- CRIU OPTIONS]
       dump-to-stdout --listen -D DIR [OPTIONS]
       dump-to-stdout --from-dir DIR [OPTIONS]
       dump-to-stdout --settle ID --via COMMAND [-D DIR]

Writes one image stream to stdout: of the process tree PID, which criu dump
freezes, of a criu dump --stream that somebody else starts, or of a directory
of images. criu kills the tree once its images are written; it runs on if
anything fails before that.

  -t, --tree PID       dump this process and its children with criu dump --stream
      --listen         offer streamer-capture.sock in -D DIR and wait for a criu
      --from-dir DIR   stream the images that criu dump -D left in DIR, and its parents' pages
      --via COMMAND    no stdout: hand the process over to a restore-from-socket that
                       COMMAND starts, and let it go here when it is ready there
      --until WHAT     with --via: let it go when the target has restored it (running, the
                       default) or has all images (sealed)
      --timeout SEC    how long the target may take to agree (default: ${DEFAULT_TARGET_TIMEOUT}); without --via how
                       long whoever reads may take nothing (default: ${DEFAULT_READER_TIMEOUT}); and how long a
                       criu may say nothing that has frozen the process
      --settle ID      tell the target what became of ID, whose dump-to-stdout was killed
                       or could not reach it
  -D, --dir DIR        work directory (default: a private temporary one)
${snapshotHelp}
${criuHelp}
${sendHelp}
${commonHelp}

${exitCodeHelp}

example, on the source host:
  dump-to-stdout -t $PID | ssh host restore-from-socket --from -
  dump-to-stdout -t $PID --via 'ssh host restore-from-socket --from -'`

interface TreeJob {
  pid: number
  /** Undefined: the one that is found. */
  criu: string | undefined
  criuOptions: readonly string[]
}

type DumpJob =
  | ({ kind: 'tree' } & TreeJob)
  | ({ kind: 'hand-over'; command: string; until: Until } & TreeJob)
  | { kind: 'listener' }
  | { kind: 'directory'; path: string }
  | { kind: 'settle'; settled: SnapshotId; command: string }

interface DumpChoice {
  job: DumpJob
  /** A fresh one if undefined. */
  id: SnapshotId | undefined
  directory: string | undefined
  send: SendChoice
  timeoutMs: number
}

/** What dump-to-stdout is to do. `criuOptions`: what follows `--`. Throws `USAGE`. */
export function readDumpOptions(values: ValuesOf<typeof dumpOptions>, criuOptions: readonly string[]): DumpChoice {
  const { tree, listen, dir, snapshot, via, settle, 'from-dir': fromDir } = values
  atMostOne({ '--tree': tree, '--listen': listen, '--from-dir': fromDir, '--settle': settle })
  atMostOne({ '--dir': dir, '--from-dir': fromDir })
  if (tree === undefined) atMostOne({ '--listen or --from-dir': true, 'criu options': criuOptions.length > 0 })
  if (via === undefined) atMostOne({ '--until': values.until, 'no --via': true })
  else if (settle === undefined) required('--tree', tree, '--via hands a process over: name it with -t PID')
  return {
    timeoutMs: timeoutMs(values.timeout ?? (via === undefined ? DEFAULT_READER_TIMEOUT : DEFAULT_TARGET_TIMEOUT)),
    id: snapshot === undefined ? undefined : snapshotId(snapshot, 'USAGE'),
    directory: dir,
    send: readSendOptions(values),
    job: readJob(values, criuOptions),
  }
}

function readJob(values: ValuesOf<typeof dumpOptions>, criuOptions: readonly string[]): DumpJob {
  const { tree, listen, dir, criu, snapshot, via, settle, until, 'from-dir': path } = values
  if (settle !== undefined) {
    const command = required('--via', via, 'the command that leads to its target')
    atMostOne({ '--settle': true, '--until or --snapshot': until ?? snapshot })
    return { kind: 'settle', settled: snapshotId(settle, 'USAGE'), command }
  }
  if (path !== undefined) return { kind: 'directory', path }
  if (listen) {
    required('--dir', dir, 'the directory that criu dump --stream gets as -D')
    return { kind: 'listener' }
  }
  const job = { pid: readPid(required('--tree', tree, 'dump-to-stdout --help')), criu, criuOptions }
  if (via === undefined) return { kind: 'tree', ...job }
  return { kind: 'hand-over', ...job, command: via, until: oneOf('--until', until ?? DEFAULT_UNTIL, untils) }
}
