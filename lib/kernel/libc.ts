/**
 * The C library through koffi. The only file that imports koffi.
 *
 * Every function returns what the system call returned, or minus errno. Nothing here waits: file descriptors are
 * made non-blocking by whoever owns them, and waiting is `readiness.ts`. A call costs about 0.3 us.
 */
import { constants as fsConstants } from 'node:fs'
import { constants } from 'node:os'
import koffi from 'koffi'

const library = koffi.load(null)

export type LoadedLibrary = typeof library

/** Another library of the system; undefined where it is not installed. */
export function loadLibrary(file: string): LoadedLibrary | undefined {
  try {
    return koffi.load(file)
  } catch {
    return undefined
  }
}

/** A function of a library: called at once, or on one of libuv's threads. */
export interface Call<Args extends unknown[]> {
  (...args: Args): number
  async(...args: [...Args, done: (error: unknown, result: number) => void]): void
}

/** Runs a call on one of libuv's four threads: for one that takes long. */
export function callAside<Args extends unknown[]>(call: Call<Args>, ...args: Args): Promise<number> {
  return new Promise((resolve, reject) => {
    call.async(...args, (error, result) => (error ? reject(error) : resolve(result)))
  })
}

type Pointer = bigint | Uint8Array | null

function call<Args extends unknown[]>(prototype: string): (...args: Args) => number {
  const raw = library.func(prototype) as (...args: Args) => number
  return (...args) => {
    const result = raw(...args)
    return result < 0 ? -koffi.errno() : result
  }
}

export const read = call<[fd: number, into: Pointer, bytes: number]>('int64_t read(int, void *, size_t)')
export const write = call<[fd: number, from: Pointer, bytes: number]>('int64_t write(int, void *, size_t)')
export const close = call<[fd: number]>('int close(int)')
export const open = call<[path: string, flags: number, mode: number]>('int open(const char *, int, int)')
export const fcntl = call<[fd: number, command: number, argument: number]>('int fcntl(int, int, int)')
export const ioctlInt = call<[fd: number, request: number, value: Int32Array]>('int ioctl(int, unsigned long, int *)')
export const fallocate = call<[fd: number, mode: number, offset: number, bytes: number]>(
  'int fallocate(int, int, int64_t, int64_t)',
)
export const fsync = call<[fd: number]>('int fsync(int)')
export const flock = call<[fd: number, operation: number]>('int flock(int, int)')
export const pipe2 = call<[fds: Int32Array, flags: number]>('int pipe2(int *, int)')
export const vmsplice = call<[to: number, iov: Pointer, count: number, flags: number]>(
  'int64_t vmsplice(int, void *, size_t, unsigned int)',
)
export const tee = call<[from: number, to: number, bytes: number, flags: number]>(
  'int64_t tee(int, int, size_t, unsigned int)',
)
export const splice = call<[from: number, at: null, to: number, at: null, bytes: number, flags: number]>(
  'int64_t splice(int, void *, int, void *, size_t, unsigned int)',
)
export const socket = call<[domain: number, type: number, protocol: number]>('int socket(int, int, int)')
export const socketpair = call<[domain: number, type: number, protocol: number, ends: Int32Array]>(
  'int socketpair(int, int, int, int *)',
)
export const bind = call<[fd: number, address: Uint8Array, length: number]>('int bind(int, void *, unsigned int)')
export const connect = call<[fd: number, address: Uint8Array, length: number]>('int connect(int, void *, unsigned int)')
export const listen = call<[fd: number, backlog: number]>('int listen(int, int)')
export const accept4 = call<[fd: number, address: null, length: null, flags: number]>(
  'int accept4(int, void *, void *, int)',
)
export const shutdown = call<[fd: number, how: number]>('int shutdown(int, int)')
export const send = call<[fd: number, from: Pointer, bytes: number, flags: number]>(
  'int64_t send(int, void *, size_t, int)',
)
export const recv = call<[fd: number, into: Pointer, bytes: number, flags: number]>(
  'int64_t recv(int, void *, size_t, int)',
)
export const recvmsg = call<[fd: number, header: Uint8Array, flags: number]>('int64_t recvmsg(int, void *, int)')
export const sendmsg = call<[fd: number, header: Uint8Array, flags: number]>('int64_t sendmsg(int, void *, int)')
export const getsockopt = call<[fd: number, level: number, option: number, value: Uint8Array, length: Int32Array]>(
  'int getsockopt(int, int, int, void *, int *)',
)
export const setsockopt = call<[fd: number, level: number, option: number, value: Int32Array, length: number]>(
  'int setsockopt(int, int, int, void *, unsigned int)',
)
export const ioctl = call<[fd: number, request: number, argument: Pointer | number]>(
  'int ioctl(int, unsigned long, void *)',
)
export const mallocTrim = call<[pad: number]>('int malloc_trim(size_t)')
export const unshare = call<[flags: number]>('int unshare(int)')
export const setns = call<[fd: number, kind: number]>('int setns(int, int)')
/** Waits for `ms` milliseconds at most, and blocks the thread meanwhile. */
export const ppoll = call<[fds: Uint8Array, count: number, time: BigInt64Array, mask: null]>(
  'int ppoll(void *, unsigned long, void *, void *)',
)
export const renameat2 = call<[from: number, path: string, to: number, name: string, flags: number]>(
  'int renameat2(int, const char *, int, const char *, unsigned int)',
)
export const mkfifo = call<[path: string, mode: number]>('int mkfifo(const char *, unsigned int)')
const syscall = call<[number: number, first: number, second: number, third: number, fourth: number]>(
  'int64_t syscall(int64_t, int64_t, int64_t, int64_t, int64_t)',
)
/** A descriptor for a process, readable when it has ended. The numbers are the same on x86-64 and arm64. */
export const pidfdOpen = (pid: number): number => syscall(434, pid, 0, 0, 0)
export const pidfdSendSignal = (pidfd: number, signal: number): number => syscall(424, pidfd, signal, 0, 0)
export const waitpid = call<[pid: number, status: null, options: number]>('int waitpid(int, void *, int)')
type SocketName = [fd: number, address: Uint8Array, length: Int32Array]
export const getsockname = call<SocketName>('int getsockname(int, void *, int *)')
export const getpeername = call<SocketName>('int getpeername(int, void *, int *)')
/** For `callAside`: it does not say errno. */
export const rawMadvise = library.func('int madvise(void *, size_t, int)') as Call<[bigint, number, number]>
export const madvise = call<[address: bigint, bytes: number, advice: number]>('int madvise(void *, size_t, int)')
export const mprotect = call<[address: bigint, bytes: number, allowed: number]>('int mprotect(void *, size_t, int)')

const rawMmap = library.func('intptr_t mmap(void *, size_t, int, int, int, int64_t)') as (
  ...args: [null, number, number, number, number, number]
) => number | bigint

/** The address of a new private anonymous mapping, or minus errno. */
export function mmapAnonymous(bytes: number): bigint {
  const address = BigInt(rawMmap(null, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))
  return address === -1n ? BigInt(-koffi.errno()) : address
}

/** A window on `bytes` of memory at `address`. The memory must outlive every use of the window. */
export function view(address: bigint, bytes: number): Uint8Array {
  return new Uint8Array(koffi.view(address, bytes))
}

/** The address of a buffer's first byte. It keeps nothing alive: for buffers that live as long as the program. */
export function address(buffer: Uint8Array): bigint {
  return BigInt(koffi.address(buffer))
}

/** koffi 3.3 passes libuv's status first, which its own types leave out. */
type PollCallback = (status: number, happened: PollEvents) => void

export interface PollHandle {
  start(events: PollEvents, callback: PollCallback): void
  stop(): void
  close(): void
}

/**
 * libuv's uv_poll. It makes the descriptor non-blocking, which must be open and one that epoll can watch: no regular
 * file.
 */
export function pollHandle(fd: number, events: PollEvents, callback: PollCallback): PollHandle {
  return koffi.node.poll(fd, events, callback as unknown as (happened: PollEvents) => void) as unknown as PollHandle
}
export interface PollEvents {
  readable: boolean
  writable: boolean
  /** The other end is closed. */
  disconnect: boolean
}

const errnoNames = new Map(Object.entries(koffi.os.errno).map(([name, value]) => [value, name]))

/** `EPIPE` for 32. */
export function errnoName(errno: number): string {
  return errnoNames.get(errno) ?? `errno ${errno}`
}

export const { EACCES, EADDRINUSE, EAGAIN, ECONNREFUSED, ECONNRESET, EEXIST, EINTR, EINVAL } = constants.errno
export const { EMFILE, ENFILE, ENOENT, ENOSYS, EOPNOTSUPP, EPERM, EPIPE } = constants.errno
export const { SIGKILL } = constants.signals
export const { O_NONBLOCK, O_RDONLY, O_RDWR, O_WRONLY } = fsConstants
export const CLONE_NEWNET = 0x40000000
export const TUNSETIFF = 0x400454ca
export const TUNSETOFFLOAD = 0x400454d0
export const IFF_TUN = 1
export const IFF_NO_PI = 0x1000
export const IFF_VNET_HDR = 0x4000
export const POLLIN = 1

/** Bytes that are waiting in a pipe or socket. */
export const FIONREAD = 0x541b
export const FALLOC_FL_KEEP_SIZE = 1
/** Not where there is something of that name. */
export const RENAME_NOREPLACE = 1
export const LOCK_EX = 2
export const LOCK_NB = 4
export const WNOHANG = 1
export const O_ACCMODE = 3
export const O_PATH = 0o10000000
export const O_CLOEXEC = 0o2000000
export const F_SETFL = 4
export const F_GETFL = 3
export const F_DUPFD_CLOEXEC = 1030
export const F_SETPIPE_SZ = 1031
export const F_GETPIPE_SZ = 1032
export const SPLICE_F_MOVE = 1
export const SPLICE_F_NONBLOCK = 2
export const AF_UNIX = 1
export const AF_INET = 2
export const AF_INET6 = 10
export const AF_NETLINK = 16
export const NETLINK_SOCK_DIAG = 4
export const SOCK_STREAM = 1
export const SOCK_DGRAM = 2
export const SOCK_NONBLOCK = 0o4000
export const SOCK_CLOEXEC = 0o2000000
export const SOL_SOCKET = 1
export const IPPROTO_TCP = 6
export const TCP_NOTSENT_LOWAT = 25
export const SO_TYPE = 3
export const SO_PEERCRED = 17
export const SO_RCVLOWAT = 18
export const SO_ACCEPTCONN = 30
export const SCM_RIGHTS = 1
export const MSG_CTRUNC = 8
export const MSG_PEEK = 2
export const MSG_NOSIGNAL = 0x4000
export const MSG_MORE = 0x8000
export const MSG_CMSG_CLOEXEC = 0x40000000
export const SHUT_WR = 1
export const SHUT_RDWR = 2
export const PROT_READ = 1
export const PROT_WRITE = 2
const MAP_PRIVATE = 2
const MAP_ANONYMOUS = 0x20
export const MADV_DONTNEED = 4
export const MADV_DONTFORK = 10
export const MADV_HUGEPAGE = 14
export const MADV_NOHUGEPAGE = 15
export const MADV_DONTDUMP = 16
/** Linux 5.14. */
export const MADV_POPULATE_WRITE = 23
