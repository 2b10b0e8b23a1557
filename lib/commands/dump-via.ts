/** dump-to-stdout --via: a hand-over to what a shell command starts, which is spoken to at its stdin and stdout. */

import { commandName } from '../command-name.ts'
import { refuseLeaving } from '../criu/run.ts'
import { openDirectory, removeIfEmpty } from '../criu/work-directory.ts'
import { HOLD_DIRECTORY } from '../defaults.ts'
import type { Until } from '../format/enums.ts'
import type { SnapshotId } from '../format/names.ts'
import { handOverOnce, reportPendingVerdicts, settleVerdict, type TargetRoute } from '../handover/standalone-source.ts'
import { openShellLinks } from '../stream/shell-link.ts'
import { type DumpOptions, withCriu } from './dump.ts'

export interface HandOverOptions extends DumpOptions {
  until: Until
  /** How long the target may take, from the last image to its answer. */
  timeoutMs: number
}

/**
 * Dumps the tree of `pid` and hands it over through the shell command `command`. Throws like `dumpTree`, what the target
 * refuses, and `TIMEOUT`; then the tasks run on here, or the message says where they are.
 */
export async function handOverTree(
  criu: string,
  pid: number,
  criuOptions: readonly string[],
  command: string,
  options: HandOverOptions,
): Promise<void> {
  refuseLeaving(criuOptions, '--via', `for a copy use a pipe: ${commandName('dump-to-stdout')} -t PID -- -R | ...`)
  await withRoute(command, options, async (route) => {
    reportPendingVerdicts(route)
    const { id, until, tuning } = options
    await withCriu(criu, pid, criuOptions, options, ({ dumping, run, gates }) =>
      handOverOnce(dumping, run.done, route, { id, until, gates, tuning }),
    )
  })
}

/** Delivers the verdict of an earlier hand-over, which is owed in the work directory. Throws like `settle`. */
export async function settleVia(
  id: SnapshotId,
  command: string,
  options: Pick<HandOverOptions, 'directory' | 'report' | 'signal' | 'timeoutMs'>,
): Promise<void> {
  await withRoute(command, options, (route) => settleVerdict(id, route))
}

/** With the directory where verdicts are kept, and the command, which ends with us. */
async function withRoute(
  command: string,
  { directory, report, signal, timeoutMs }: Pick<HandOverOptions, 'directory' | 'report' | 'signal' | 'timeoutMs'>,
  work: (route: TargetRoute) => Promise<void>,
): Promise<void> {
  const verdicts = openDirectory(directory ?? HOLD_DIRECTORY)
  const { connect, end } = openShellLinks(command)
  const dir = directory === undefined ? '' : ` -D ${directory}`
  const settleCommand = (id: SnapshotId): string =>
    `${commandName('dump-to-stdout')}${dir} --settle ${id} --via COMMAND`
  try {
    await work({ verdicts, connect, settleCommand, storesImages: false, report, signal, timeoutMs })
  } finally {
    await end()
    if (directory === undefined) removeIfEmpty(verdicts)
  }
}
