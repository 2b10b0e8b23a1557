/** Something that several may wait for, again and again. */
export interface News {
  /** Resolves when the next is told. */
  told(): Promise<void>
  /** Calls `listener` at the next; what this returns forgets it before. For who may wait for something else first, again and again. */
  next(listener: () => void): () => void
  tell(): void
}

export function openNews(): News {
  let wake = (): void => {}
  let next: Promise<void> | undefined
  const listeners = new Set<() => void>()
  return {
    told() {
      next ??= new Promise<void>((resolve) => {
        wake = resolve
      })
      return next
    },
    next(listener) {
      const once = (): void => listener()
      listeners.add(once)
      return () => void listeners.delete(once)
    },
    tell() {
      next = undefined
      wake()
      const all = [...listeners]
      listeners.clear()
      for (const listener of all) listener()
    },
  }
}
