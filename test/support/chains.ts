/**
 * Chains of incremental dumps: those that CRIU made in a machine that can track changed pages, and those that we make
 * of a full dump.
 */
import { execFileSync } from 'node:child_process'
import { copyFileSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { PAGE_BYTES, type PagemapEntry, pageFlag, readPagemap } from '../../lib/format/pagemap.ts'
import { fixtures, temporary } from './run.ts'

export interface RecordedChain {
  /** The version of the CRIU that made it. */
  criu: string
  /** The oldest first; the last is the dump, the others are pre-dumps. */
  directories: string[]
}

/** The chains of fixtures/chain, unpacked until this process ends. */
export function chains(): RecordedChain[] {
  const { path, remove } = temporary()
  process.once('exit', remove)
  const packed = readdirSync(join(fixtures, 'chain')).filter((name) => name.endsWith('.tar.gz'))
  return packed.sort().map((name) => {
    const criu = basename(name, '.tar.gz')
    mkdirSync(join(path, criu))
    execFileSync('tar', ['xf', join(fixtures, 'chain', name), '-C', join(path, criu)])
    return { criu, directories: ['1', '2', '3', '4'].map((round) => join(path, criu, round)) }
  })
}

type Page = Buffer | 'in the parent' | 'lazy'

/** What a directory has of a pagemap, page by page, its parents left aside. */
function ownPages(directory: string, name: string): { pages: Map<number, Page>; flags: Map<number, number> } {
  const { pagesId, entries } = readPagemap([readFileSync(join(directory, name))])
  const bytes = readFileSync(join(directory, `pages-${pagesId}.img`))
  const pages = new Map<number, Page>()
  const flags = new Map<number, number>()
  let offset = 0
  for (const entry of entries) {
    for (let page = 0; page < entry.pages; page++) {
      const vaddr = entry.vaddr + page * PAGE_BYTES
      flags.set(vaddr, entry.flags)
      if ((entry.flags & pageFlag.present) === 0) {
        pages.set(vaddr, (entry.flags & pageFlag.parent) === 0 ? 'lazy' : 'in the parent')
        continue
      }
      pages.set(vaddr, bytes.subarray(offset, offset + PAGE_BYTES))
      offset += PAGE_BYTES
    }
  }
  if (offset !== bytes.length) throw new Error(`${directory}/${name}: ${bytes.length} bytes for ${offset}`)
  return { pages, flags }
}

/**
 * Every page of a dump by its address, looked up one at a time as CRIU does: in the parent where the pagemap says so.
 */
export function pagesByAddress(directory: string, name: string): Map<number, Page> {
  const { pages } = ownPages(directory, name)
  const waiting = [...pages].filter(([, page]) => page === 'in the parent')
  const below = waiting.length > 0 ? pagesByAddress(join(directory, 'parent'), name) : undefined
  for (const [vaddr] of waiting) {
    const page = below?.get(vaddr)
    if (page === undefined) throw new Error(`${directory}/${name}: no page at ${vaddr}`)
    pages.set(vaddr, page)
  }
  return pages
}

/** How a release of CRIU writes an entry: fields 1 to 5. */
export type Writing = 'before flags' | '4.1' | '4.2'

function varint(value: number): number[] {
  const bytes: number[] = []
  let rest = value
  for (; rest >= 128; rest = Math.floor(rest / 128)) bytes.push((rest % 128) + 128)
  return [...bytes, rest]
}

function framed(body: number[]): Buffer {
  const size = Buffer.alloc(4)
  size.writeUInt32LE(body.length)
  return Buffer.concat([size, Buffer.from(body)])
}

/** A pagemap as that release writes it. */
export function pagemapOf(writing: Writing, pagesId: number, entries: readonly PagemapEntry[]): Buffer {
  const bodies = entries.map(({ vaddr, pages, flags }) => {
    const start = [8, ...varint(vaddr), 16, ...varint(writing === '4.2' ? 0 : pages)]
    if (writing === 'before flags') return [...start, ...((flags & pageFlag.parent) === 0 ? [] : [24, 1])]
    return [...start, 32, flags, ...(writing === '4.2' ? [40, ...varint(pages)] : [])]
  })
  const head = Buffer.from('1943565425400856', 'hex')
  return Buffer.concat([head, framed([8, ...varint(pagesId)]), ...bodies.map(framed)])
}

/** The same numbers every time. */
function chance(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state = (state * 1103515245 + 12345) % 2 ** 31
    return Math.floor((state / 2 ** 31) * below)
  }
}

/**
 * Makes a chain of a full dump, which goes into its last directory, `into/COUNT`: of each pagemap every page goes to
 * one of the directories, in those that come later it is in the parent, and in those before there is another page at
 * its address, or none.
 */
export function splitDump(from: string, into: string, writings: readonly Writing[], seed = 1): string {
  const count = writings.length
  const random = chance(seed)
  const directories = writings.map((_, layer) => join(into, String(count - layer)))
  directories.forEach((directory, layer) => {
    mkdirSync(directory, { recursive: true })
    if (layer < count - 1) symlinkSync(`../${count - layer - 1}`, join(directory, 'parent'))
  })
  const [top = into] = directories
  for (const name of readdirSync(from).filter((file) => file.endsWith('.img')))
    copyFileSync(join(from, name), join(top, name))
  for (const name of readdirSync(from).filter((file) => file.startsWith('pagemap-'))) {
    const { pagesId } = readPagemap([readFileSync(join(from, name))])
    const { pages, flags } = ownPages(from, name)
    const layers = directories.map(() => ({ entries: [] as PagemapEntry[], bytes: [] as Buffer[] }))
    let owner = 0
    for (const [vaddr, page] of pages) {
      if (random(3) === 0) owner = random(count)
      layers.forEach(({ entries, bytes }, layer) => {
        if (layer > owner && random(2) === 0) return
        const kind = layer < owner ? pageFlag.parent : (flags.get(vaddr) ?? 0)
        const last = entries.at(-1)
        if (last?.flags === kind && last.vaddr + last.pages * PAGE_BYTES === vaddr) last.pages++
        else entries.push({ vaddr, pages: 1, flags: kind })
        if (layer < owner || page === 'lazy' || page === 'in the parent') return
        bytes.push(layer === owner ? page : Buffer.alloc(PAGE_BYTES, 0xa5 + layer))
      })
    }
    layers.forEach(({ entries, bytes }, layer) => {
      const directory = directories[layer] as string
      writeFileSync(join(directory, name), pagemapOf(writings[layer] ?? '4.2', pagesId, entries))
      writeFileSync(join(directory, `pages-${pagesId}.img`), Buffer.concat(bytes))
    })
  }
  return top
}
