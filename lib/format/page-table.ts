/** Finding pages by their digest: a hash table of numbers, in columns, because there may be a million. */

export type PageTable = ReturnType<typeof openPageTable>

const FIRST = 1024
/**
 * Slots that are looked at: half of all slots are free, so more are in a row only where somebody has chosen pages for
 * it, and those are then merely not found.
 */
const MOST_PROBES = 64

/** A table of at most `most` pages. It takes 12 bytes a page, and up to twice that. */
export function openPageTable(most: number) {
  let weaks = new Uint32Array(FIRST)
  /** Numbers plus one; 0 is free. */
  let slots = new Int32Array(2 * FIRST)
  let count = 0

  /** A free slot for it. */
  function slotFor(weak: number): number | undefined {
    for (let probe = 0; probe < MOST_PROBES; probe++) {
      const slot = (weak + probe) % slots.length
      if (slots[slot] === 0) return slot
    }
    return undefined
  }

  function grow(): void {
    const old = weaks
    weaks = new Uint32Array(2 * old.length)
    weaks.set(old)
    slots = new Int32Array(2 * weaks.length)
    for (let number = 0; number < count; number++) {
      const slot = slotFor(old[number] as number)
      if (slot !== undefined) slots[slot] = number + 1
    }
  }

  return {
    /** How many were added. They are numbered from 0 on. */
    get count(): number {
      return count
    },

    /** The one with this weak digest for which `equal` says so. */
    find(weak: number, equal: (number: number) => boolean): number | undefined {
      for (let probe = 0; probe < MOST_PROBES; probe++) {
        const number = (slots[(weak + probe) % slots.length] as number) - 1
        if (number < 0) return undefined
        if (weaks[number] === weak && equal(number)) return number
      }
      return undefined
    },

    /** Returns its number; undefined where too many are like it, or all there may be are here. */
    add(weak: number): number | undefined {
      if (count === most) return undefined
      if (count === weaks.length) grow()
      const slot = slotFor(weak)
      if (slot === undefined) return undefined
      weaks[count] = weak
      slots[slot] = ++count
      return count - 1
    },
  }
}
