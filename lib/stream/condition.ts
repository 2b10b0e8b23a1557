/** Something that several may wait for, again and again. */
export interface Condition {
  /** Resolves when the next is told. */
  wait(): Promise<void>
  notify(): void
}

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
