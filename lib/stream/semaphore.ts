/** Taking turns: at most so many at a time, in the order of asking. */
export interface Semaphore {
  take(): Promise<void>
  give(): void
}

/** At most `most` at a time. */
export function semaphore(most: number): Semaphore {
  const waiting: (() => void)[] = []
  let taken = 0
  return {
    async take() {
      if (taken >= most) await new Promise<void>((resolve) => waiting.push(resolve))
      else taken++
    },
    give() {
      const next = waiting.shift()
      if (next === undefined) taken--
      else next()
    },
  }
}
