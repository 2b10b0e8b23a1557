import { Session } from 'node:inspector'
import { freemem } from 'node:os'
import { Fault } from '../fault.ts'
import * as libc from './libc.ts'

/** Memory outside of JavaScript's heap: its address for system calls, and a window on it for JavaScript. */
export interface Region {
  address: bigint
  bytes: number
  window: Uint8Array
}

/** The address of a buffer, for system calls. The buffer must live as long as the address is used. */
export const addressOf = libc.address

/** x86-64 and arm64 with 4 KiB pages. */
export const HUGE_PAGE = 2 * 2 ** 20

/**
 * Maps `bytes` (a multiple of 2 MiB) of private memory, aligned for huge pages and asking for them: what costs is
 * memory that was never touched, see `populate`. It is left out of core dumps and of forked children: it holds other
 * people's memory.
 */
export function mapMemory(bytes: number): Region {
  const raw = libc.mmapAnonymous(bytes + HUGE_PAGE)
  if (raw < 0n) throw new Fault('MEMORY', `cannot map ${bytes} bytes: ${libc.errnoName(Number(-raw))}`)
  const huge = BigInt(HUGE_PAGE)
  const address = ((raw + huge - 1n) / huge) * huge
  libc.madvise(address, bytes, libc.MADV_HUGEPAGE)
  libc.madvise(address, bytes, libc.MADV_DONTDUMP)
  libc.madvise(address, bytes, libc.MADV_DONTFORK)
  return { address, bytes, window: libc.view(address, bytes) }
}

/**
 * Faults the memory in, on another thread: page faults on memory that the system has to find and to clear cost 0.3 to
 * 1.6 s a GiB, many times what it takes to fill it. Does nothing before Linux 5.14.
 */
export async function populate(address: bigint, bytes: number): Promise<void> {
  await libc.callAside(libc.rawMadvise, address, bytes, libc.MADV_POPULATE_WRITE).catch(() => {})
}

/** Bytes that this machine, and our control group, can still give without taking them from somebody. */
export function availableMemory(): number {
  return Math.min(freemem(), process.availableMemory())
}

/**
 * Gives the system back what this process held for work that is over: JavaScript's garbage, and what the C library
 * keeps for the next allocation. Takes some 10 ms. V8 collects what is old when it needs room, and a daemon that is
 * idle needs none.
 *
 * The collection is the one that V8's inspector runs (HeapProfiler.collectGarbage), for that one reduces memory. After
 * `gc()` the new space stays as large as it was, 30 MiB, where nothing was allocated in the last 5 s.
 */
export async function giveBack(): Promise<void> {
  const session = new Session()
  session.connect()
  await new Promise((resolve) => session.post('HeapProfiler.collectGarbage', resolve))
  libc.mallocTrim(0)
  session.disconnect()
}

/**
 * Whether the kernel may put a huge page there. It may otherwise fill up one of which a part was discarded
 * (khugepaged), and the memory would be back. What it cannot note it need not know.
 */
export function allowHuge(address: bigint, bytes: number, allowed: boolean): void {
  libc.madvise(address, bytes, allowed ? libc.MADV_HUGEPAGE : libc.MADV_NOHUGEPAGE)
}

/**
 * Whether anybody in this process may write there: whoever does it all the same ends the process, and a system call
 * that would is refused. Reading, lending and discarding go on. Returns whether the kernel has done it: it may have
 * too many mappings.
 */
export function allowWriting(address: bigint, bytes: number, allowed: boolean): boolean {
  return libc.mprotect(address, bytes, libc.PROT_READ | (allowed ? libc.PROT_WRITE : 0)) === 0
}

/** Gives the memory back to the system and keeps the addresses: a window that is still held reads zeros. */
export function discard(address: bigint, bytes: number): void {
  libc.madvise(address, bytes, libc.MADV_DONTNEED)
}
