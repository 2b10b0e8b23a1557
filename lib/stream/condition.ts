/** Something that several may wait for, again and again. */
export interface Condition {
  /** Resolves at the next `notify`. */
  wait(): Promise<void>
  /** Wakes all who wait by now. */
  notify(): void
}

/** Nothing is notified yet. Both methods may be passed on as functions. */
export function openCondition(): Condition {
  let wake = (): void => {}
  let next: Promise<void> | undefined
  return {
    wait() {
      next ??= new Promise<void>((resolve) => {
        wake = resolve
      })
      return next
    },
    notify() {
      next = undefined
      wake()
    },
  }
}
