/** Notices when a daemon becomes idle after much work: it may then return memory that this work made it take. */

export interface IdleTimer {
  /** A connection or a task has begun. */
  came(): void
  /** It is over. */
  left(): void
}

export interface IdleOptions {
  /** After fewer connections than this there is nothing worth returning. */
  least?: number
  /** How long there must have been no connection, ms. */
  ms?: number
}

/** Calls `onIdle` once for each time that the daemon has become idle. */
export function openIdleTimer(onIdle: () => unknown, { least = 100, ms = 5000 }: IdleOptions = {}): IdleTimer {
  let present = 0
  /** Connections since it was idle last. */
  let total = 0
  let timer: NodeJS.Timeout | undefined

  function becomeIdle(): void {
    total = 0
    onIdle()
  }

  return {
    came() {
      present++
      total++
      clearTimeout(timer)
    },
    left() {
      present--
      if (present === 0 && total >= least) timer = setTimeout(becomeIdle, ms).unref()
    },
  }
}
