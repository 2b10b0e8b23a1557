/** At most `most` hold the semaphore at a time; the others wait in the order in which they asked. */
export function semaphore(most: number) {
  const waiting: (() => void)[] = []
  let taken = 0
  return {
    /** Resolves when the caller holds it. */
    async take(): Promise<void> {
      if (taken >= most) await new Promise<void>((resolve) => waiting.push(resolve))
      else taken++
    },
    /** The caller, who holds it, does not need it any more. */
    give(): void {
      const next = waiting.shift()
      if (next === undefined) taken--
      else next()
    },
  }
}
