/** At most so many hold it at a time; the others wait in the order in which they asked. */
export interface Semaphore {
  /** Resolves when the caller holds it. */
  take(): Promise<void>
  /** The caller, who holds it, does not need it any more. */
  give(): void
}

/** A semaphore that at most `most` hold at a time. */
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
