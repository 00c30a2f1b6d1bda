/* The commit protocol with resume, as guarded commands (Spin 6.5); docs/DISK_FORMAT.md and docs/PROTOCOL.md say it in words.
 *
 * One volume of NB blocks with contents 0..VALS-1, NC source controllers, one target, at most MAXG generation ids and MAXS resumes of an
 * attempt. A power cut loses any subset of unflushed writes; frames are lost or come late, into a later session or attempt; kill -9
 * leaves device writes in flight. -DLIVE: the source has no frozen snapshot, a resumed run scans again. -DPROMOTE: the target
 * may serve writes of its own and be demoted again. Without a mutant (-DM_xxx, a seeded bug) every assertion holds.
 *
 * INV-E, INV-R  what is durable on the target is exactly the committed generation: at the commit and after each recovery
 * INV-I         the index never claims a block that the target does not hold
 * INV-M         the history of commits is a chain
 * INV-P         a session that lost none of its frames ends in PREPARED: what was applied is never sent in vain, nor missing */
#ifndef NB
#define NB 2
#endif
#ifndef NC
#define NC 1
#endif
#ifndef MAXG
#define MAXG 3
#endif
#ifndef MAXS
#define MAXS 1
#endif
#ifndef VALS
#define VALS 2
#endif

#define UNKNOWN 9
#define IMG(g, b) img[(g) * NB + (b)]
#define OF(c, b) ((c) * NB + (b))
#define EACH_BLOCK(step) b = 0; do :: b < NB -> step; b++ :: else -> break od; b = 0

/* ghosts: what the proof knows and nobody else */
byte img[MAXG * NB]; /* content of each generation */
byte nextid = 1;     /* ids are random: modelled as fresh numbers, compared for equality only */
byte stime[MAXG];    /* when the snapshot of a generation was taken */
byte commits = 0;
bit lost;            /* a frame of the present session was lost */
#ifdef REACH_RESUME
bit resumed;
byte resumed_commits;
#endif

/* source */
byte src[NB];                                   /* the device, written by its host */
byte I[NC * NB]; byte igen[NC];                 /* durable digest index and the generation it describes */
bit pv[NC]; byte pgen[NC]; byte pd[NC * NB];    /* durable pending delta */
byte sst[NC]; /* 0 idle, 1 planned, 2 sending, 3 PREPARE sent, 4 COMMIT sent, 5 cut off, may resume */
byte sgen[NC]; byte sbase[NC]; byte sses[NC];   /* its attempt (= new id), base and session */
byte snap[NC * NB];                             /* what was scanned: what is hashed is what is sent */
byte need[NC]; byte sent[NC];                   /* blocks of the new generation's delta; those handed over or applied */

/* target: *d durable, *v as the process and later reads see it */
byte Dd[NB]; byte Dv[NB];
bit Ukd[NB]; bit Ukv[NB]; byte Uvd[NB]; byte Uvv[NB]; byte ubase; /* before-images */
byte tgen;                                      /* T, the committed generation in the superblock */
byte tst;     /* 0 down, 1 idle, 2 open, 3 prepared, 4 restored, 5 flushed, 6 flip pending (a mutant) */
byte tatt; byte tses;                           /* open attempt and its session */
byte applied;                                   /* blocks received in the attempt */
byte stage[NB]; byte val[NB];                   /* 0 none, 1 before-image written, 2 overwrite submitted, 3 overwritten, of val */

/* network: a slot per kind of frame, for data per block */
bit wv[NB]; byte wval[NB]; byte watt[NB]; byte wses[NB];
bit prv; byte pratt; byte prses; byte prmask;   /* PREPARE; the content its manifest stands for is IMG(pratt, ...) of its session */
bit pdv; byte pdatt; byte pdses;                /* PREPARED */
bit cov; byte coatt; byte coses;                /* COMMIT */
bit cdv; byte cdatt;                            /* COMMITTED */

#define INFLIGHT (stage[0] == 2 || stage[NB-1] == 2)
#define SETTLED(b) (stage[b] == 0 || stage[b] == 3)
#define DRAINED (SETTLED(0) && SETTLED(NB-1))
#define CURRENT(b) (wv[b] && watt[b] == tatt && wses[b] == tses)
#define SAME(b) (!(applied & (1 << (b))) || val[b] == IMG(tatt, b))
#define MANIFEST_OK (prmask == applied && SAME(0) && SAME(NB-1))
#define PREPARE_HERE (prv && tst == 2 && pratt == tatt && prses == tses && DRAINED)

#ifdef SAFETY_ONLY /* is a mutant that INV-P catches harmful too? */
#define PROGRESS true
#else
#define PROGRESS lost
#endif

/* ---- rules that a mutant leaves out ---- */

/* A connection of the present session ends before PREPARE; one of the dead ends when it likes, so these two take frames later too. */
#ifdef M_NO_ATTEMPT_ID
#define ACCEPTED(B) ((tst == 2 || tst == 3) && wses[B] == tses)
#else
#ifdef M_NO_SESSION
#define ACCEPTED(B) ((tst == 2 || tst == 3) && watt[B] == tatt)
#else
#define ACCEPTED(B) (tst == 2 && watt[B] == tatt && wses[B] == tses)
#endif
#endif
#ifdef M_RELOG_UNDO
#define LOGGED(B) 0
#else
#define LOGGED(B) Ukv[B] /* first-logged wins */
#endif
#ifdef M_REREAD
#define PAYLOAD(c, B) src[B]
#else
#define PAYLOAD(c, B) snap[OF(c, B)]
#endif
#ifdef M_NO_UNDO_FLUSH
#define FLUSH_UNDO skip
#else
#define FLUSH_UNDO EACH_BLOCK(Ukd[b] = Ukv[b]; Uvd[b] = Uvv[b])
#endif
#ifdef M_NO_DATA_FLUSH
#define FLUSH_DATA skip
#else
#define FLUSH_DATA EACH_BLOCK(Dd[b] = Dv[b])
#endif
#ifdef M_NO_DRAIN
#define DEVICE_DRAINED (1)
#else
#define DEVICE_DRAINED (!INFLIGHT)
#endif
#ifdef M_UNDO_UNTAGGED
#define UNDO_IS_OURS (1)
#else
#define UNDO_IS_OURS (ubase == tgen)
#endif
#ifdef M_NO_MANIFEST
#define MANIFEST_PASSES (1)
#else
#define MANIFEST_PASSES MANIFEST_OK
#endif
#ifdef M_NO_BASE_CHECK
#define BASE_PASSES(c) (1)
#else
#define BASE_PASSES(c) (sbase[c] == tgen)
#endif
/* What a resuming source believes the target holds in block b. */
#ifdef M_RESUME_WRONG_APPLIED
#define BELIEVED(c, b) (sent[c] & (1 << b) -> snap[OF(c, b)] : I[OF(c, b)])
#define BELIEVED_APPLIED(c) sent[c]
#else
#define BELIEVED_APPLIED(c) applied
#ifdef M_LIVE_SKIP_APPLIED
#define BELIEVED(c, b) I[OF(c, b)]
#else
#define BELIEVED(c, b) (applied & (1 << b) -> val[b] : I[OF(c, b)])
#endif
#endif
#ifdef LIVE
#define SCANNED(c, b) src[b]
#else
#define SCANNED(c, b) snap[OF(c, b)]
#endif

#define CHECK_IMAGE EACH_BLOCK(assert(Dd[b] == IMG(tgen, b))) /* INV-E, INV-R */
#define FORGET_UNDO EACH_BLOCK(Ukv[b] = 0; Ukd[b] = 0)
#define FOLD(c) EACH_BLOCK(I[OF(c, b)] = pd[OF(c, b)]); igen[c] = pgen[c]; pv[c] = 0
#define PROCESS_GONE EACH_BLOCK(if :: stage[b] != 2 -> stage[b] = 0 :: else -> skip fi); tatt = 0; tses = 0; tst = 0

/* ---- what happens per block ---- */

#define BLOCK(B) \
  /* the host writes */ \
  :: d_step { true -> src[B] = (src[B] + 1) % VALS } \
  /* the source sends */ \
  :: d_step { (sst[c] == 2 && (need[c] & (1 << B)) && !(sent[c] & (1 << B)) && !wv[B]) -> \
     wv[B] = 1; watt[B] = sgen[c]; wses[B] = sses[c]; wval[B] = PAYLOAD(c, B); sent[c] = sent[c] | (1 << B) } \
  /* the network loses */ \
  :: d_step { wv[B] -> if :: CURRENT(B) -> lost = 1 :: else -> skip fi; wv[B] = 0 } \
  /* a frame arrives: its before-image is written, not yet flushed */ \
  :: d_step { wv[B] -> wv[B] = 0; \
     if :: ACCEPTED(B) && SETTLED(B) -> \
           val[B] = wval[B]; applied = applied | (1 << B); \
           if :: !LOGGED(B) -> Uvv[B] = Dv[B]; Ukv[B] = 1 :: else -> skip fi; \
           stage[B] = 1 \
        :: else -> skip fi } \
  /* undo is flushed, then the overwrite is submitted (R3) */ \
  :: d_step { ((tst == 2 || tst == 3) && stage[B] == 1) -> FLUSH_UNDO; stage[B] = 2 } \
  /* the device completes an overwrite, even of a dead process */ \
  :: d_step { stage[B] == 2 -> Dv[B] = val[B]; if :: tst == 2 || tst == 3 -> stage[B] = 3 :: else -> stage[B] = 0 fi }

active proctype everyone()
{
  byte b = 0; byte c = 0; byte x = 0;
  tst = 1;
  do
  BLOCK(0)
#if NB == 2
  BLOCK(1)
#endif
#if NC == 2
  :: d_step { c = 1 - c }
#endif

  /* ---- HELLO: learn T, settle the pending delta, scan and plan ---- */
  :: d_step { (sst[c] == 0 && tst == 1 && nextid < MAXG) ->
     if
#ifdef M_NO_UUID_CHECK
     :: true -> igen[c] = tgen; pv[c] = 0
#else
     :: pv[c] && pgen[c] == tgen -> FOLD(c)
     :: !(pv[c] && pgen[c] == tgen) && igen[c] == tgen -> pv[c] = 0
     :: else -> EACH_BLOCK(I[OF(c, b)] = UNKNOWN); igen[c] = tgen; pv[c] = 0
#endif
     fi;
     EACH_BLOCK(assert(I[OF(c, b)] == UNKNOWN || I[OF(c, b)] == IMG(tgen, b))); /* INV-I */
     sbase[c] = tgen;
#ifdef M_REUSE_ID
     sgen[c] = tgen + 1;
#else
     sgen[c] = nextid;
#endif
     nextid = nextid + 1; need[c] = 0; sent[c] = 0; sses[c] = 0;
     EACH_BLOCK(snap[OF(c, b)] = src[b]; if :: I[OF(c, b)] != src[b] -> need[c] = need[c] | (1 << b) :: else -> skip fi);
     sst[c] = 1 }

  /* ---- BEGIN(base, new): compare-and-swap on the base ---- */
  :: d_step { (sst[c] == 1 && tst == 1) ->
     if
     :: BASE_PASSES(c) ->
        EACH_BLOCK(IMG(sgen[c], b) = snap[OF(c, b)]);
        stime[sgen[c]] = sgen[c];
        tst = 2; tatt = sgen[c]; tses = 0; applied = 0; ubase = tgen; lost = 0;
        EACH_BLOCK(if :: stage[b] != 2 -> stage[b] = 0; val[b] = 0 :: else -> skip fi);
#ifdef REACH_RESUME
        resumed = 0;
#endif
#ifdef M_STALE_UNDO /* the header is tagged anew, the old records are not durably gone */
        EACH_BLOCK(Ukv[b] = 0);
#else
        FORGET_UNDO;
#endif
        sst[c] = 2
     :: !BASE_PASSES(c) -> sst[c] = 0
     fi }

  /* ---- the connection is cut; the source comes back to the attempt it had ---- */
  :: d_step { (sst[c] == 2 || sst[c] == 3) -> sst[c] = 5 }
  /* RESUME: the target drains the older session before it answers with a higher one and with what it has applied */
  :: d_step { (sst[c] == 5 && (tst == 2 || tst == 3) && tatt == sgen[c] && DRAINED && tses < MAXS) ->
     tses = tses + 1; sses[c] = tses; tst = 2; lost = 0;
     x = BELIEVED_APPLIED(c); need[c] = x; sent[c] = x;
     EACH_BLOCK(
       if :: BELIEVED(c, b) != SCANNED(c, b) -> need[c] = need[c] | (1 << b); sent[c] = sent[c] & ~(1 << b) :: else -> skip fi;
       snap[OF(c, b)] = SCANNED(c, b); IMG(tatt, b) = snap[OF(c, b)]);
     x = 0; sst[c] = 2;
#ifdef REACH_RESUME
     resumed = 1
#endif
     }

  /* ---- PREPARE: everything applied and flushed, or refused ---- */
  :: d_step { (sst[c] == 2 && need[c] == sent[c] && !prv) ->
     prv = 1; pratt = sgen[c]; prses = sses[c]; prmask = need[c]; sst[c] = 3 }
  :: d_step { (PREPARE_HERE && MANIFEST_PASSES) -> prv = 0; FLUSH_DATA; tst = 3; pdv = 1; pdatt = tatt; pdses = tses }
  :: d_step { (PREPARE_HERE && !MANIFEST_OK && !CURRENT(0) && !CURRENT(NB-1)) -> prv = 0; assert(PROGRESS) } /* INV-P */
  :: d_step { (prv && !(tst == 2 && pratt == tatt && prses == tses)) -> prv = 0 }

  /* ---- PREPARED: the pending delta is durable, then COMMIT ---- */
  :: d_step { pdv -> pdv = 0; x = 0;
     do
     :: x < NC ->
        if
        :: sst[x] == 3 && pdatt == sgen[x] && pdses == sses[x] ->
           EACH_BLOCK(pd[OF(x, b)] = snap[OF(x, b)]);
           pv[x] = 1; pgen[x] = sgen[x];
#ifdef M_EARLY_INDEX
           EACH_BLOCK(I[OF(x, b)] = snap[OF(x, b)]);
           igen[x] = sgen[x]; pv[x] = 0;
#endif
#ifdef M_EARLY_INDEX_OLDTAG
           EACH_BLOCK(I[OF(x, b)] = snap[OF(x, b)]);
           igen[x] = sbase[x]; pv[x] = 0;
#endif
#ifdef M_NO_PENDING
           pv[x] = 0;
#endif
           cov = 1; coatt = sgen[x]; coses = sses[x]; sst[x] = 4
        :: else -> skip
        fi; x++
     :: else -> break
     od; x = 0 }

  /* ---- COMMIT: the superblock flip is the commit point (R4) ---- */
  :: d_step { (cov && tst == 3 && coatt == tatt && coses == tses) -> cov = 0;
#ifdef M_UNDO_ERASED_FIRST
     FORGET_UNDO; tst = 6 }
  :: d_step { tst == 6 ->
#endif
     assert(stime[tatt] > stime[tgen]); /* INV-M */
     tgen = tatt; commits = commits + 1;
#ifdef REACH_RESUME
     resumed_commits = resumed_commits + resumed;
#endif
#ifndef M_NO_DATA_FLUSH
     CHECK_IMAGE;
#endif
     tst = 1; cdv = 1; cdatt = tatt }
  :: d_step { (cov && tst != 6 && !(tst == 3 && coatt == tatt && coses == tses)) -> cov = 0 }
  :: d_step { cdv -> cdv = 0; x = 0;
     do
     :: x < NC ->
        if :: sst[x] == 4 && cdatt == sgen[x] -> if :: pv[x] -> FOLD(x) :: else -> skip fi; sst[x] = 0
           :: else -> skip
        fi; x++
     :: else -> break
     od; x = 0 }

  /* ---- loss of the other frames; the source forgets, or dies ---- */
  :: d_step { prv -> prv = 0 }
  :: d_step { pdv -> pdv = 0 }
  :: d_step { cov -> cov = 0 }
  :: d_step { cdv -> cdv = 0 }
  :: d_step { sst[c] != 0 -> sst[c] = 0 }

  /* ---- the target: abort, kill -9, power cut ---- */
  :: d_step { ((tst == 2 || tst == 3) && DEVICE_DRAINED) -> PROCESS_GONE }
  :: d_step { tst != 0 -> PROCESS_GONE } /* what was submitted lives on */
  :: atomic { true -> b = 0; /* any subset of what was not flushed survives */
     do
     :: b < NB ->
        if :: stage[b] == 2 -> if :: Dv[b] = val[b] :: skip fi :: else -> skip fi; stage[b] = 0;
        if :: Dd[b] = Dv[b] :: Dv[b] = Dd[b] fi;
        if :: Ukd[b] != Ukv[b] || Uvd[b] != Uvv[b] ->
              if :: Ukd[b] = Ukv[b]; Uvd[b] = Uvv[b] :: Ukv[b] = Ukd[b]; Uvv[b] = Uvd[b] fi
           :: else -> skip
        fi; b++
     :: else -> break
     od; b = 0; tatt = 0; tses = 0; tst = 0 }

  /* ---- recovery: drain (R1), restore, flush, only then clear undo (R10) ---- */
  :: d_step { (tst == 0 && DEVICE_DRAINED) ->
     EACH_BLOCK(if :: Ukv[b] && UNDO_IS_OURS -> Dv[b] = Uvv[b] :: else -> skip fi);
#ifdef M_CLEAR_BEFORE_FLUSH
     FORGET_UNDO;
#endif
     tst = 4 }
  :: d_step { tst == 4 -> EACH_BLOCK(Dd[b] = Dv[b]); CHECK_IMAGE; tst = 5 }
  :: d_step { tst == 5 -> FORGET_UNDO; tst = 1 }

#ifdef PROMOTE
  /* ---- role switch: the target served a write and was demoted again ---- */
  :: d_step { (tst == 1 && nextid < MAXG) ->
#ifndef M_PROMOTE_SAME_ID
     tgen = nextid; stime[tgen] = nextid; nextid = nextid + 1;
#endif
     Dd[0] = (Dd[0] + 1) % VALS; Dv[0] = Dd[0];
     EACH_BLOCK(IMG(tgen, b) = Dd[b]) }
#endif
#ifdef REACH
  :: d_step { commits >= REACH -> assert(false) }
#endif
#ifdef REACH_RESUME
  :: d_step { resumed_commits >= REACH_RESUME -> assert(false) }
#endif
  od
}
