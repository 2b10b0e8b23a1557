/**
 * The tasks that a criu dumps, watched from outside: whether they are dead is what decides a hand-over, not what anybody says.
 * And those that it restores, which must not outlive it frozen.
 *
 * While criu dumps them they are all its ptrace tracees (they are frozen before the first image is opened), so they are found
 * by that, and held by pidfds, before criu can kill one of them.
 */
import { descendants, isDying, openProcess, type Process, parentOf, startTime, tracedBy } from '../kernel/process.ts'

/** A process with the moment of its start: together they are never used again before a reboot. */
export interface TaskId {
  pid: number
  /** Clock ticks since the boot. */
  start: number
}

export interface WatchedTree {
  /** The criu first. */
  readonly criu: TaskId
  readonly tasks: readonly TaskId[]
  /** `dead` when all tasks are; `alive` when the criu has ended and the first of them is alive. Never settles after `close`. */
  readonly fate: Promise<'dead' | 'alive'>
  /** Whether one of them was killed: criu is at work. */
  isDying(): boolean
  /** Whether criu still holds every task. */
  frozen(): boolean
  close(): void
}

/** What the criu with the number `pid` dumps. No tasks where it dumps none, or none that can be seen from here. */
export function watchTree(pid: number): WatchedTree {
  const criu = openProcess(pid)
  const traced = tracedBy(pid)
  const members = traced
    // The root first: its parent is no task of this tree.
    .sort((one, other) => Number(traced.includes(parentOf(one) ?? 0)) - Number(traced.includes(parentOf(other) ?? 0)))
    .map((task) => ({ pid: task, start: startTime(task), process: openProcess(task) }))
    .filter((task): task is TaskId & { process: Process } => task.start !== undefined && task.process !== undefined)
  const processes = members.map((task) => task.process)
  const dead = Promise.all(processes.map((task) => task.ended)).then(() => 'dead' as const)
  const over = (criu?.ended ?? new Promise<never>(() => {})).then(() => settle(members))
  return {
    criu: { pid, start: startTime(pid) ?? 0 },
    tasks: members.map(({ pid: task, start }) => ({ pid: task, start })),
    fate: new Promise((resolve) => {
      // Without tasks there is nothing to be alive.
      dead.then(resolve, () => {})
      over.then(resolve, () => {})
    }),
    isDying: () => members.some((task) => isDying(task.pid) || !isAlive(task)),
    frozen() {
      const held = new Set(tracedBy(pid))
      return members.length > 0 && members.every((task) => held.has(task.pid) && startTime(task.pid) === task.start)
    },
    close() {
      for (const member of [criu, ...processes]) member?.close()
    },
  }
}

/** A criu that was killed while it killed may leave the rest of a tree without its root: that is no process any more. */
async function settle(tasks: readonly (TaskId & { process: Process })[]): Promise<'dead' | 'alive'> {
  // criu kills first and then waits: whoever it has killed is as good as dead.
  await Promise.all(tasks.filter((task) => isDying(task.pid)).map((task) => task.process.ended))
  const [root] = tasks
  if (root !== undefined && isAlive(root)) return 'alive'
  for (const { process } of tasks) process.kill()
  return 'dead'
}

/** Whether it has not ended. */
export function isAlive(member: TaskId): boolean {
  return startTime(member.pid) === member.start
}

/** The same question without pidfds, for a tree that a proxy before us watched; undefined while its criu works. */
export function treeFate({ criu, tasks }: Pick<WatchedTree, 'criu' | 'tasks'>): 'dead' | 'alive' | undefined {
  const [root] = tasks
  if (root === undefined || !isAlive(root)) return 'dead'
  return isAlive(criu) || tasks.some((task) => isDying(task.pid)) ? undefined : 'alive'
}

/** The tasks that a criu has restored and holds. */
export interface HeldTasks {
  /** Forgets them. Where they do not run their criu was killed: they would wait for it for ever, and are killed too. */
  settle(run: boolean): void
}

/** What the criu with the number `pid` holds at this moment. */
export function heldTasks(pid: number): HeldTasks {
  const tasks = descendants(pid).flatMap((task) => openProcess(task) ?? [])
  return {
    settle(run) {
      for (const task of tasks) {
        if (!run) task.kill()
        task.close()
      }
    },
  }
}
