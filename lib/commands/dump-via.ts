/** dump-to-stdout --via: a hand-over to the program that a shell command starts, over its stdin and stdout. */
import { commandName } from '../command-name.ts'
import { refuseLeaving } from '../criu/run.ts'
import type { Until } from '../format/enums.ts'
import { handOverOnce, type RouteOptions, reportPendingVerdicts, withRoute } from '../handover/standalone-source.ts'
import { openShellLinks } from '../stream/shell-link.ts'
import { type DumpOptions, type TreeDump, withCriu } from './dump.ts'

/**
 * Dumps a process tree and hands it over through the shell command `command`; the target may take `timeoutMs` from the
 * last image to its answer. Throws like `dumpTree`, the target's refusal, and `TIMEOUT`; then the tasks run on here, or
 * the message says where they are.
 */
export async function handOverTree(
  tree: TreeDump,
  command: string,
  { id, until, tuning, ...options }: DumpOptions & { until: Until },
): Promise<void> {
  const hint = `for a copy use a pipe: ${commandName('dump-to-stdout')} -t PID -- -R | ...`
  refuseLeaving(tree.criuOptions, '--via', hint)
  await withShellRoute(command, options, async (route) => {
    reportPendingVerdicts(route)
    await withCriu(tree, options, ({ dumping, run, gates }) =>
      handOverOnce(dumping, run.done, route, { id, until, gates, tuning }),
    )
  })
}

/** Calls `work` with a route through `command`, which ends with us. */
export async function withShellRoute(
  command: string,
  { directory, report, signal, timeoutMs }: Omit<DumpOptions, 'id' | 'tuning'>,
  work: Parameters<typeof withRoute>[1],
): Promise<void> {
  const { connect, end } = openShellLinks(command)
  const settleCommand: RouteOptions['settleCommand'] = (dir, id) =>
    `${commandName('dump-to-stdout')}${dir} --settle ${id} --via COMMAND`
  const route = { directory, connect, settleCommand, storesImages: false, report, signal, timeoutMs }
  await withRoute(route, (opened) => work(opened).finally(end))
}
