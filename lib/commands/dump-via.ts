/** dump-to-stdout --via: a hand-over to the program that a shell command starts, over its stdin and stdout. */
import { commandName } from '../command-name.ts'
import { refuseLeaving } from '../criu/run.ts'
import type { Until } from '../format/enums.ts'
import type { SnapshotId } from '../format/names.ts'
import {
  handOverOnce,
  reportPendingVerdicts,
  settleVerdict,
  type TargetRoute,
  withRoute,
} from '../handover/standalone-source.ts'
import { openShellLinks } from '../stream/shell-link.ts'
import { type DumpOptions, withCriu } from './dump.ts'

export interface HandOverOptions extends DumpOptions {
  until: Until
  /** How long the target may take, from the last image to its answer. */
  timeoutMs: number
}

/**
 * Dumps the tree of `pid` and hands it over through the shell command `command`. Throws like `dumpTree`, the target's
 * refusal, and `TIMEOUT`; then the tasks run on here, or the message says where they are.
 */
export async function handOverTree(
  criu: string,
  pid: number,
  criuOptions: readonly string[],
  command: string,
  options: HandOverOptions,
): Promise<void> {
  refuseLeaving(criuOptions, '--via', `for a copy use a pipe: ${commandName('dump-to-stdout')} -t PID -- -R | ...`)
  await withShellRoute(command, options, async (route) => {
    reportPendingVerdicts(route)
    const { id, until, tuning } = options
    await withCriu(criu, pid, criuOptions, options, ({ dumping, run, gates }) =>
      handOverOnce(dumping, run.done, route, { id, until, gates, tuning }),
    )
  })
}

/** Delivers the verdict of an earlier hand-over, which is in the work directory. Throws like `settleVerdict`. */
export async function settleVia(
  id: SnapshotId,
  command: string,
  options: Pick<HandOverOptions, 'directory' | 'report' | 'signal' | 'timeoutMs'>,
): Promise<void> {
  await withShellRoute(command, options, (route) => settleVerdict(id, route))
}

/** Calls `work` with a route through `command`, which ends with us. */
async function withShellRoute(
  command: string,
  { directory, report, signal, timeoutMs }: Pick<HandOverOptions, 'directory' | 'report' | 'signal' | 'timeoutMs'>,
  work: (route: TargetRoute) => Promise<void>,
): Promise<void> {
  const { connect, end } = openShellLinks(command)
  const settleCommand = (dir: string, id: SnapshotId): string =>
    `${commandName('dump-to-stdout')}${dir} --settle ${id} --via COMMAND`
  const route = { directory, connect, settleCommand, storesImages: false, report, signal, timeoutMs }
  await withRoute(route, (opened) => work(opened).finally(end))
}
