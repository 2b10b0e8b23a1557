/** Options of dump-to-stdout about a hand-over. */
import { atMostOne, required, timeoutMs } from './parse.ts'

export const viaOptions = {
  via: { type: 'string' },
  settle: { type: 'string' },
  until: { type: 'string' },
  timeout: { type: 'string' },
} as const

export const viaHelp = `      --via COMMAND    no stdout: hand the process over to a restore-from-socket that
                       COMMAND starts, and let it go here when it is ready there
      --until sealed   with --via: let it go when the target has all images
      --timeout SEC    how long the target may take to agree (default: 60); without --via how
                       long whoever reads may take nothing (default: 300); and how long a
                       criu may say nothing that has frozen the process
      --settle ID      tell the target what became of ID, whose dump-to-stdout was killed
                       or could not reach it`

type Values = { [Name in keyof typeof viaOptions]?: string | undefined }

/** A reader may be a person who types a password, while the process is frozen. */
const READER_MS = 300_000
const TARGET_MS = 60_000

/** Milliseconds that a target, or a reader, may take. Throws `USAGE` for options that do not go together. */
export function viaPatience({ via, settle, until, timeout }: Values, tree: string | undefined): number {
  if (via === undefined) atMostOne({ '--until': until, 'no --via': true })
  else if (settle === undefined) required('--tree', tree, '--via hands a process over: name it with -t PID')
  return timeoutMs(timeout, via === undefined ? READER_MS : TARGET_MS)
}
