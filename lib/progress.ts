import type { Fault } from './fault.ts'

/** What roles tell the command line: a role never prints. */
export type Progress =
  /** A place where others can connect is ready. */
  | { event: 'listening'; at: string }
  /** Every place where others can connect is ready: a daemon tells whoever waits for it. */
  | { event: 'ready' }
  /** What a daemon does now, when it is asked. `sent`: bytes since it began. */
  | { event: 'status'; of: 'proxy'; dumps: number; sent: number }
  | {
      event: 'status'
      of: 'cache'
      snapshots: number
      chains: number
      used: number
      limit: number
      /** Connections that are answered, and those that have said nothing yet. */
      links: number
      silent: number
      /** Bytes that are held for peers beside images; counted in `used`. */
      peers: number
      parked: number
    }
  /**
   * A snapshot left this host, complete, but for `spared` bytes of pages that the cache had. `ms`: from the first byte.
   */
  | {
      event: 'sent'
      id: string
      images: number
      bytes: number
      spared?: number | undefined
      ms: number
      verified: boolean
    }
  /** A snapshot is here, complete and verified; or that round of one, which is a chain. */
  | { event: 'sealed'; id: string; round?: number; images: number; bytes: number; ms: number; digest: string }
  /** A restore took its images. */
  | { event: 'served'; id: string; images: number; bytes: number; ms: number }
  /** criu dump returned; `frozenMs` from its own statistics. */
  | { event: 'dumped'; frozenMs: number | undefined; ms: number }
  | { event: 'restored'; ms: number }
  /** The system gives us pipes of only that many bytes, which costs time. */
  | { event: 'small pipes'; bytes: number }
  /** A criu that somebody else started restores by `--stream`, and something is lost by that. */
  | { event: 'lost by stream'; id: string; fault: Fault }
  /** The cache does not say which pages it has: all are sent. */
  | { event: 'nothing offered' }
  /** Both ends know what became of a snapshot's tasks, and it is what was asked for. */
  | { event: 'handed over'; id: string; verdict: 'go' | 'copy'; fate: 'stored' | 'running' | 'dropped' }
  /** Both know that the process runs on at the source. */
  | { event: 'not handed over'; id: string }
  /** The link to the source is gone, and with it the verdict: restored tasks are held; `how` to give it by hand. */
  | { event: 'undecided'; id: string; how: string }
  /** A pre-dump is at the cache. */
  | { event: 'round'; id: string; number: number; pages: number; bytes: number; ms: number }
  /** What comes after it, and how long the process will stand still for that; `enough`: why it is no other round. */
  | { event: 'predicted'; frozenMs: number; enough: string | undefined }
  /** A chain of dumps became one; `bytes` of all its images. */
  | { event: 'flattened'; layers: number; images: number; bytes: number; ms: number }
  /** A restore waits for a snapshot. */
  | { event: 'waiting'; what: string }
  /** One snapshot or one client failed; the daemon goes on. */
  | { event: 'failed'; what: string; fault: Error }

export type Report = (progress: Progress) => void
