/**
 * Watches the tasks that a criu dumps: a hand-over is decided by whether they are dead, and not by a message. Watches
 * also the tasks that a criu restores, which must not stay frozen when it is gone.
 *
 * While criu dumps the tasks it traces all of them with ptrace, and it freezes them before it opens the first image. So
 * they are found by their tracer, and a pidfd is opened for each, before criu can kill one of them.
 */
import { descendants, isDying, openProcess, type Process, parentOf, startTime, tracedBy } from '../kernel/process.ts'

/** A process and the moment of its start: the pair does not come again before a reboot. */
export interface TaskId {
  pid: number
  /** In clock ticks since the boot. */
  start: number
}

export type WatchedTree = ReturnType<typeof watchTree>

/**
 * Watches what the criu with the number `pid` dumps: no tasks where it dumps none, or none that can be seen from here.
 */
export function watchTree(pid: number) {
  const criu = openProcess(pid)
  const traced = tracedBy(pid)
  const members = traced
    // The root comes first: its parent is no task of this tree.
    .sort((one, other) => Number(traced.includes(parentOf(one) ?? 0)) - Number(traced.includes(parentOf(other) ?? 0)))
    .map((task) => ({ pid: task, start: startTime(task), process: openProcess(task) }))
    .filter((task): task is TaskId & { process: Process } => task.start !== undefined && task.process !== undefined)
  const processes = members.map((task) => task.process)
  const never = new Promise<never>(() => {})
  // Without tasks the tree is dead at once.
  const dead = Promise.all(processes.map((task) => task.ended)).then(() => 'dead' as const)
  const over = (criu?.ended ?? never).then(() => fateAfterCriu(members))
  return {
    criu: { pid, start: startTime(pid) ?? 0 },
    /** The root of the tree first. */
    tasks: members.map(({ pid: task, start }) => ({ pid: task, start })),
    /**
     * `dead` when all tasks are dead; `alive` when criu has ended and the root is alive. Never settles after `close`.
     */
    fate: Promise.race([dead.catch(() => never), over.catch(() => never)]),
    /** Whether a task was killed, or is gone: criu is at work. */
    isDying: () => members.some((task) => isDying(task.pid) || !isAlive(task)),
    /** Whether criu still holds every task. */
    frozen() {
      const held = new Set(tracedBy(pid))
      return members.length > 0 && members.every((task) => held.has(task.pid) && startTime(task.pid) === task.start)
    },
    close(): void {
      for (const member of [criu, ...processes]) member?.close()
    },
  }
}

/** Kills what a criu left of a tree that has no root any more: it was killed itself while it killed the tasks. */
async function fateAfterCriu(tasks: readonly (TaskId & { process: Process })[]): Promise<'dead' | 'alive'> {
  // A task that criu has killed may still take a while to end.
  await Promise.all(tasks.filter((task) => isDying(task.pid)).map((task) => task.process.ended))
  const [root] = tasks
  if (root !== undefined && isAlive(root)) return 'alive'
  for (const { process } of tasks) process.kill()
  return 'dead'
}

/** Whether the process has not ended. */
export function isAlive(member: TaskId): boolean {
  return startTime(member.pid) === member.start
}

/** The fate of a tree that an earlier process watched, asked without pidfds; undefined while its criu works. */
export function treeFate({ criu, tasks }: Pick<WatchedTree, 'criu' | 'tasks'>): 'dead' | 'alive' | undefined {
  const [root] = tasks
  if (root === undefined || !isAlive(root)) return 'dead'
  return isAlive(criu) || tasks.some((task) => isDying(task.pid)) ? undefined : 'alive'
}

/** The tasks that the criu with the number `pid` restores, and holds until it lets them run: none before `note`. */
export function restoredTasks(pid: number) {
  const tasks = new Map<number, Process>()
  return {
    /** Adds the tasks that criu holds at this moment. */
    note(): void {
      for (const number of descendants(pid)) {
        const task = tasks.has(number) ? undefined : openProcess(number)
        if (task !== undefined) tasks.set(number, task)
      }
    },
    /**
     * Forgets the tasks. Where they do not `run`, their criu was killed: they would wait for it for ever, and are
     * killed too.
     */
    settle(run: boolean): void {
      for (const task of tasks.values()) {
        if (!run) task.kill()
        task.close()
      }
      tasks.clear()
    },
  }
}
