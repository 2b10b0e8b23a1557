/** When a daemon has become quiet: nobody is there any more, after many had come. Then it may give back what they made it hold. */

export interface IdleTimer {
  came(): void
  left(): void
}

export interface IdleOptions {
  /** Fewer leave nothing that is worth it. */
  least?: number
  /** Nobody has come for so long. */
  ms?: number
}

/** `onQuiet` is called once for each time that it has become quiet. */
export function openIdleTimer(onQuiet: () => void, { least = 100, ms = 5000 }: IdleOptions = {}): IdleTimer {
  let present = 0
  /** Since it was quiet last. */
  let all = 0
  let timer: NodeJS.Timeout | undefined

  function calm(): void {
    all = 0
    onQuiet()
  }

  return {
    came() {
      present++
      all++
      clearTimeout(timer)
    },
    left() {
      present--
      if (present === 0 && all >= least) timer = setTimeout(calm, ms).unref()
    },
  }
}
