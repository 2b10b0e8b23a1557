/**
 * Reaps orphans. The first process of a pid namespace, as a container's command is, becomes the parent of each process
 * whose own parent ends: of all that `criu restore -d` leaves behind. Until it has waited for those that end, their
 * pids stay taken, and CRIU cannot restore a process with such a pid.
 */
import { WNOHANG, waitpid } from './libc.ts'
import { childrenOf, startTime } from './process.ts'

const own = new Set<number>()

/** A child of ours that Node waits for; `ended` must be called when Node has. */
export function ownChild(pid: number): { ended(): void } {
  own.add(pid)
  return { ended: () => void own.delete(pid) }
}

/** Takes note of the ends of orphans from now on, where we are the first process. Elsewhere we get none. */
export function reapOrphans(): void {
  if (process.pid !== 1) return
  process.on('SIGCHLD', () => {
    const ended = childrenOf(process.pid).filter((pid) => !own.has(pid) && startTime(pid) === undefined)
    for (const pid of ended) waitpid(pid, null, WNOHANG)
  })
}
