/** Where consecutive bytes lie, range after range, in columns: there may be one for every page. */
import { PAGE_BYTES } from '../format/pagemap.ts'
import { openAccount } from './accounting.ts'
import { EXTENT, type Pool } from './pool.ts'

export interface PageRanges {
  readonly bytes: number
  /** These bytes come next; neighbours in one extent are one range. Throws `MEMORY`. */
  add(address: number, bytes: number): void
  /** Where page number `page` of all this is, and how many come behind it without a gap; undefined if it is not there. */
  run(page: number): [address: number, pages: number] | undefined
  [Symbol.iterator](): Iterator<[address: number, bytes: number]>
  /** It is of no use any more. */
  close(): void
}

const FIRST = 64
/** Two columns of 8 bytes. */
const ENTRY_BYTES = 16

/** What it grows to is charged to the pool. */
export function openPageRanges(pool: Pick<Pool, 'charge' | 'zeros'>): PageRanges {
  let addresses = new Float64Array(FIRST)
  /** Of all bytes up to the range's end. */
  let ends = new Float64Array(FIRST)
  let count = 0
  const charges = openAccount(pool)

  function grow(): void {
    charges.add(addresses.length * ENTRY_BYTES)
    const [oldAddresses, oldEnds] = [addresses, ends]
    addresses = new Float64Array(2 * oldAddresses.length)
    ends = new Float64Array(2 * oldEnds.length)
    addresses.set(oldAddresses)
    ends.set(oldEnds)
  }

  const endOf = (at: number): number => (at < 0 ? 0 : (ends[at] as number))
  const lengthOf = (at: number): number => endOf(at) - endOf(at - 1)

  /** The first range that ends behind `position`. */
  function find(position: number): number {
    let [low, high] = [0, count]
    while (low < high) {
      const middle = (low + high) >>> 1
      if (endOf(middle) > position) high = middle
      else low = middle + 1
    }
    return low
  }

  return {
    get bytes() {
      return endOf(count - 1)
    },
    add(address, bytes) {
      const last = count - 1
      const next = last < 0 ? 0 : (addresses[last] as number) + lengthOf(last)
      if (last >= 0 && next === address && address % EXTENT !== 0) {
        ends[last] = endOf(last) + bytes
        return
      }
      if (count === addresses.length) grow()
      addresses[count] = address
      ends[count] = endOf(last) + bytes
      count++
    },
    run(page) {
      const position = page * PAGE_BYTES
      const at = find(position)
      if (at === count) return undefined
      const address = (addresses[at] as number) + position - endOf(at - 1)
      return [address, Math.floor((endOf(at) - position) / PAGE_BYTES)]
    },
    *[Symbol.iterator]() {
      for (let at = 0; at < count; at++) yield [addresses[at] as number, lengthOf(at)]
    },
    close() {
      charges.close()
      count = 0
    },
  }
}
