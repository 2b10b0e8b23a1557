/** The list of what a cache holds, as text or as JSON. */
import type { Holding, HoldingState } from '../format/holdings.ts'
import { formatSize } from '../size.ts'

/** The parts of a holding that are printed. */
type Listed = Omit<Holding, 'id'> & { id: string }

interface HoldingsList {
  /** How many there are; `holdings` may be cut. */
  total: number
  holdings: readonly Listed[]
}

const words: Record<Exclude<HoldingState, 'chain'>, string> = {
  arriving: 'arriving',
  sealed: 'sealed',
  undecided: 'waits for its verdict',
  restoring: 'is being restored',
  held: 'held until its verdict',
  owning: 'waits for a restore, its source is gone',
  retained: 'retained, its process runs',
  leaving: 'removed, and still read or shared',
  taken: 'restored by a criu that waited for no verdict',
}

/** The version of the object that `--json` prints. */
const SCHEMA = 2

/** Prints the list to stdout: a line for each holding, or one JSON object. */
export function printHoldings(list: HoldingsList, json: boolean): void {
  process.stdout.write(json ? `${asJson(list)}\n` : asText(list))
}

/** A line for each holding, and one that says how many are left out. */
export function asText({ total, holdings }: HoldingsList): string {
  const rows = holdings.map(({ id, state, pinned, count, bytes, shared, seconds }) => [
    id,
    (state === 'chain' ? `chain of ${many(count, 'round')}` : `${words[state]}, ${many(count, 'image')}`) +
      (pinned ? ', pinned' : ''),
    formatSize(bytes) + (shared > 0 ? ` and ${formatSize(shared)} shared` : ''),
    `${seconds} s`,
  ])
  const width = (column: number): number => Math.max(...rows.map((row) => row[column]?.length ?? 0))
  const lines = rows.map((row) =>
    row.map((cell, column) => (column < 3 ? cell.padEnd(width(column)) : cell)).join('  '),
  )
  const more = total - holdings.length
  if (more > 0) lines.push(`and ${more} more`)
  return lines.map((line) => `${line}\n`).join('')
}

/** One JSON object, without a line feed at its end. */
export function asJson({ total, holdings }: HoldingsList): string {
  const snapshots = holdings.map(({ id, state, pinned, count, bytes, shared, seconds }) => ({
    ...{ id, state, pinned, [state === 'chain' ? 'rounds' : 'images']: count, bytes, shared, seconds },
  }))
  return JSON.stringify({ version: SCHEMA, total, snapshots })
}

function many(count: number, what: string): string {
  return `${count} ${what}${count === 1 ? '' : 's'}`
}
