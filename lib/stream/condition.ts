/** Something that several may wait for, again and again. */
export type Condition = ReturnType<typeof openCondition>

/** Nothing is notified yet. Both methods may be passed on as functions. */
export function openCondition() {
  let wake = (): void => {}
  let next: Promise<void> | undefined
  return {
    /** Resolves at the next `notify`. */
    wait(): Promise<void> {
      next ??= new Promise<void>((resolve) => {
        wake = resolve
      })
      return next
    },
    /** Wakes all who wait by now. */
    notify(): void {
      next = undefined
      wake()
    },
  }
}
