/** The list of what a cache holds, as text or as JSON. */
import { formatSize } from '../size.ts'

interface Listed {
  id: string
  state:
    | 'arriving'
    | 'sealed'
    | 'undecided'
    | 'restoring'
    | 'held'
    | 'owning'
    | 'retained'
    | 'leaving'
    | 'chain'
    | 'taken'
  pinned: boolean
  count: number
  bytes: number
  shared: number
  seconds: number
}

/** `total`: what is there, for a list that is cut. */
interface Stock {
  total: number
  holdings: readonly Listed[]
}

const words: Record<Exclude<Listed['state'], 'chain'>, string> = {
  arriving: 'arriving',
  sealed: 'sealed',
  undecided: 'waits for its verdict',
  restoring: 'is being restored',
  held: 'held until its verdict',
  owning: 'waits for a restore, its source is gone',
  retained: 'retained, its process runs',
  leaving: 'removed, and still read or shared',
  taken: 'taken by a criu that nobody held',
}

/** The version of the object that `--json` prints. */
const SCHEMA = 2

/** Prints what a cache holds: a line each, or one JSON object. */
export function printHoldings(stock: Stock, json: boolean): void {
  process.stdout.write(json ? `${asJson(stock)}\n` : asText(stock))
}

/** A line each. */
export function asText({ total, holdings }: Stock): string {
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

/** One object, without the end of a line. */
export function asJson({ total, holdings }: Stock): string {
  const snapshots = holdings.map(({ id, state, pinned, count, bytes, shared, seconds }) => ({
    ...{ id, state, pinned, [state === 'chain' ? 'rounds' : 'images']: count, bytes, shared, seconds },
  }))
  return JSON.stringify({ version: SCHEMA, total, snapshots })
}

function many(count: number, what: string): string {
  return `${count} ${what}${count === 1 ? '' : 's'}`
}
