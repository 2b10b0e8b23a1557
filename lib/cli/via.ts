/** Options of dump-to-stdout about a hand-over. */
import { atMostOne, required, timeoutMs } from './values.ts'

export const viaOptions = {
  via: { type: 'string' },
  settle: { type: 'string' },
  until: { type: 'string' },
  timeout: { type: 'string' },
} as const

export const viaHelp = `      --via COMMAND    no stdout: hand the process over to a restore-from-socket that
                       COMMAND starts, and let it go here when it is ready there
      --until sealed   with --via: let it go when the target has all images
      --timeout SEC    with --via: how long the target may take to agree (default: 60)
      --settle ID      tell the target what became of ID, whose dump-to-stdout was killed
                       or could not reach it`

type Values = { [Name in keyof typeof viaOptions]?: string | undefined }

/** Milliseconds that a target may take. Throws `USAGE` for options that do not go together. */
export function viaPatience({ via, settle, until, timeout }: Values, tree: string | undefined): number {
  if (via === undefined) atMostOne({ '--until or --timeout': until ?? timeout, 'no --via': true })
  else if (settle === undefined) required('--tree', tree, '--via hands a process over: name it with -t PID')
  return timeoutMs(timeout, 60_000)
}
