/** Notices when a daemon becomes idle after much work: it may then return memory that this work made it take. */

/**
 * Calls `onIdle` once for each time that the daemon has become idle. `least`: after fewer connections than this there
 * is nothing worth returning. `ms`: how long there must have been no connection.
 */
export function openIdleTimer(onIdle: () => unknown, { least = 100, ms = 5000 } = {}) {
  let present = 0
  /** Connections since it was idle last. */
  let total = 0
  let timer: NodeJS.Timeout | undefined

  return {
    /** A connection or a task has begun. */
    came(): void {
      present++
      total++
      clearTimeout(timer)
    },
    /** It is over. */
    left(): void {
      present--
      if (present > 0 || total < least) return
      timer = setTimeout(() => {
        total = 0
        onIdle()
      }, ms).unref()
    },
  }
}

export type IdleTimer = ReturnType<typeof openIdleTimer>
