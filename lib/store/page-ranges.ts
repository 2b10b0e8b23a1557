/** Where consecutive bytes lie, range after range. Ranges are kept in columns: there may be one for every page. */
import { PAGE_BYTES } from '../format/pagemap.ts'
import { Account } from './accounting.ts'
import { EXTENT, type Pool } from './pool.ts'

/** Ranges that the columns hold at first, which are not charged. */
const FIRST = 64
/** A range takes 8 bytes in each of two columns. */
const ENTRY_BYTES = 16

export class PageRanges {
  /** The address of each range. */
  #addresses = new Float64Array(FIRST)
  /** The number of bytes up to the end of each range. */
  #ends = new Float64Array(FIRST)
  /** How many ranges there are. */
  #count = 0
  readonly #account: Account

  /** The memory of long columns is charged to `pool`. */
  constructor(pool: Pick<Pool, 'charge'>) {
    this.#account = new Account(pool)
  }

  /** Bytes in all ranges. */
  get bytes(): number {
    return this.#endOf(this.#count - 1)
  }

  /** Notes where the next bytes lie; neighbours in one extent become one range. Throws `MEMORY`. */
  add(address: number, bytes: number): void {
    const last = this.#count - 1
    const end = this.#endOf(last)
    if (last >= 0 && address % EXTENT !== 0) {
      const next = (this.#addresses[last] as number) + end - this.#endOf(last - 1)
      if (next === address) {
        this.#ends[last] = end + bytes
        return
      }
    }
    if (this.#count === this.#addresses.length) this.#grow()
    this.#addresses[this.#count] = address
    this.#ends[this.#count] = end + bytes
    this.#count++
  }

  /** Returns where page number `page` lies and how many lie behind it without a gap; undefined behind the last page. */
  run(page: number): [address: number, pages: number] | undefined {
    const position = page * PAGE_BYTES
    let [at, high] = [0, this.#count]
    // Find the first range that ends behind `position`.
    while (at < high) {
      const middle = (at + high) >>> 1
      if (this.#endOf(middle) > position) high = middle
      else at = middle + 1
    }
    if (at === this.#count) return undefined
    const address = (this.#addresses[at] as number) + position - this.#endOf(at - 1)
    return [address, Math.floor((this.#endOf(at) - position) / PAGE_BYTES)]
  }

  *[Symbol.iterator](): Generator<[address: number, bytes: number], void> {
    for (let at = 0; at < this.#count; at++) {
      yield [this.#addresses[at] as number, this.#endOf(at) - this.#endOf(at - 1)]
    }
  }

  /** Forgets all ranges and gives back what was charged. */
  close(): void {
    this.#account.close()
    this.#count = 0
  }

  #endOf(at: number): number {
    return at < 0 ? 0 : (this.#ends[at] as number)
  }

  #grow(): void {
    this.#account.add(this.#addresses.length * ENTRY_BYTES)
    this.#addresses = twiceAsLong(this.#addresses)
    this.#ends = twiceAsLong(this.#ends)
  }
}

function twiceAsLong(column: Float64Array): Float64Array<ArrayBuffer> {
  const longer = new Float64Array(2 * column.length)
  longer.set(column)
  return longer
}
