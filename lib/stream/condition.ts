/** Something that several may wait for, again and again. */
export interface News {
  /** Resolves when the next is told. */
  told(): Promise<void>
  tell(): void
}

export function openNews(): News {
  let wake = (): void => {}
  let next: Promise<void> | undefined
  return {
    told() {
      next ??= new Promise<void>((resolve) => {
        wake = resolve
      })
      return next
    },
    tell() {
      next = undefined
      wake()
    },
  }
}
